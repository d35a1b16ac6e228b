"use strict";
// Filters, search and opening of rows. Text goes to the page through textContent only.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const FEW = 20; // rows on a phone, until more are asked for
  const narrow = matchMedia("(max-width: 46rem)");
  const pairs = data.models.length > 1;
  let against = 1; // the place of the trained model that the base is held against
  let most = FEW;
  const rows = [...document.querySelectorAll("#rows > .item")].map((item, place) => {
    const text = item.nextElementSibling;
    const [verdicts, cut, silent, kinds] = data.rows[place];
    const button = item.querySelector("button");
    button.disabled = false;
    return { item, text, button, verdicts, cut, silent, kinds, tag: item.querySelector(".tag"),
      cells: [...item.querySelectorAll("td.num:not(.gold)")], words: null, outcome: "" };
  });
  const outcomes = [...document.querySelectorAll("input[name=outcome]")];
  const [search, rule, ending, behindButton, other] = ["search", "rule", "ending", "behind", "against"].map(find);
  let behind = null; // {label, fits}: the problems behind a number in a table
  const number = new Intl.NumberFormat("en");

  const isRight = (row, model, name) => row.verdicts[model][name] % 2;
  const outcomeOf = (row, name) => pairs
    ? ["neither", "lost", "won", "both"][isRight(row, 0, name) + 2 * isRight(row, against, name)]
    : ["wrong", "right"][isRight(row, 0, name)];
  const chosen = () => outcomes.find((input) => input.checked).value;

  function applyRule() {
    const name = Number(rule.value);
    for (const row of rows) {
      row.outcome = outcomeOf(row, name);
      row.tag.className = `tag ${row.outcome}`;
      row.tag.textContent = row.outcome;
      row.cells.forEach((cell, model) => {
        const verdict = row.verdicts[model][name];
        cell.textContent = data.answers[verdict >> 1] ?? "none";
        cell.className = `num ${verdict % 2 ? "ok" : "no"}`;
      });
    }
  }

  function wordsOf(row) {
    row.words ??= `${row.item.textContent}\n${row.text.textContent}`.toLowerCase();
    return row.words;
  }

  function matches(row, wanted) {
    if (wanted.ending && !row[wanted.ending.slice(1)][wanted.ending[0]]) return false;
    if (behind && !behind.fits(row)) return false;
    return wanted.terms.every((term) => wordsOf(row).includes(term));
  }

  function update() {
    const wanted = { ending: ending.value, terms: search.value.toLowerCase().split(/\s+/).filter(Boolean) };
    const counts = { all: 0 };
    const only = chosen();
    let shown = 0;
    const room = narrow.matches ? most : Infinity;
    for (const row of rows) {
      const fits = matches(row, wanted);
      if (fits) { counts.all += 1; counts[row.outcome] = (counts[row.outcome] ?? 0) + 1; }
      const wants = fits && (only === "all" || only === row.outcome);
      const visible = wants && shown < room;
      shown += wants;
      row.item.hidden = !visible;
      row.text.hidden = !visible;
    }
    find("further").hidden = shown <= room;
    find("more").textContent = `More (${number.format(Math.max(0, shown - room))} left)`;
    for (const label of document.querySelectorAll("[data-count]")) label.textContent = number.format(counts[label.dataset.count] ?? 0);
    find("shown").textContent = rows.length === 1 && shown ? "1 problem" : shown === rows.length ? `All ${number.format(shown)} problems` : `${number.format(shown)} of ${number.format(rows.length)} problems`;
    find("nothing").hidden = shown > 0;
    behindButton.hidden = !behind;
    if (behind) behindButton.textContent = behind.label;
    find("clear").hidden = !(behind || wanted.ending || wanted.terms.length || only !== "all");
    labelOpen();
    highlight(wanted.terms);
  }

  function setOpen(row, open) {
    row.item.classList.toggle("open", open);
    row.text.classList.toggle("open", open);
    row.button.setAttribute("aria-expanded", String(open));
  }
  const visibleRows = () => rows.filter((row) => !row.item.hidden);
  const isOpen = (row) => row.item.classList.contains("open");
  function labelOpen() {
    const seen = visibleRows();
    find("open-all").hidden = !seen.length;
    find("open-all").textContent = seen.length && seen.every(isOpen) ? "Close all shown" : "Open all shown";
  }

  // The found words are marked without touching the text, where the browser can do that.
  function highlight(terms) {
    if (!globalThis.CSS?.highlights) return;
    CSS.highlights.delete("found");
    if (!terms.length) return;
    const marks = new Highlight();
    for (const row of visibleRows().slice(0, 200)) {
      for (const part of isOpen(row) ? [row.item, row.text] : [row.item]) mark(part, terms, marks);
    }
    CSS.highlights.set("found", marks);
  }
  function mark(part, terms, marks) {
    const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const words = node.data.toLowerCase();
      if (words.length !== node.data.length) continue; // a few letters change their length
      for (const term of terms) {
        for (let at = words.indexOf(term); at >= 0; at = words.indexOf(term, at + term.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + term.length);
          marks.add(range);
        }
      }
    }
  }
  const currentTerms = () => search.value.toLowerCase().split(/\s+/).filter(Boolean);

  function show(outcome) {
    outcomes.find((input) => input.value === outcome).checked = true;
    update();
  }
  function showBehind(wanted) {
    behind = wanted;
    search.value = "";
    ending.value = "";
    show("all");
  }
  function goToProblems() {
    find("problems").scrollIntoView();
    find("problems").focus({ preventScroll: true });
  }
  function clear() {
    behind = null;
    search.value = "";
    ending.value = "";
    show("all");
    search.focus();
  }
  function openTarget() {
    const row = rows.find(({ item }) => `#${item.id}` === location.hash);
    if (!row) return;
    if (row.item.hidden) { most = rows.length; clear(); }
    setOpen(row, true);
    row.button.focus();
    row.item.scrollIntoView({ block: "center" });
  }
  // A number in a table becomes a button that shows the problems behind it.
  function jump(cell, label, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "jump";
    button.setAttribute("aria-label", label);
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => { action(); goToProblems(); });
  }
  for (const cell of document.querySelectorAll("[data-outcome]")) {
    jump(cell, `Show the problems: ${cell.textContent.trim()}`, () => {
      behind = null; search.value = ""; ending.value = "";
      against = Number(cell.dataset.against ?? 1);
      if (other) other.value = String(against);
      rule.value = String(data.rules.indexOf(data.rule));
      applyRule();
      show(cell.dataset.outcome);
    });
  }
  for (const cell of document.querySelectorAll("[data-right]")) {
    const model = Number(cell.closest("table").dataset.model);
    const [right, wrong] = [Number(cell.dataset.right), Number(cell.dataset.wrong)];
    const label = `${cell.textContent}: ${data.models[model]}, ${data.rules[right]} right and ${data.rules[wrong]} wrong; show them`;
    jump(cell, label, () => showBehind({
      label: `${data.models[model]}: ${data.rules[right]} right, ${data.rules[wrong]} wrong`,
      fits: (row) => isRight(row, model, right) && !isRight(row, model, wrong),
    }));
  }
  for (const cell of document.querySelectorAll("[data-kind]")) {
    const [model, kind] = [Number(cell.dataset.model), Number(cell.dataset.kind)];
    const label = `${data.models[model]}: ${cell.closest("tr").querySelector("th").textContent}`;
    jump(cell, `${cell.textContent.trim()}, ${label}; show them`, () => showBehind({ label, fits: (row) => row.kinds[model] === kind }));
  }

  find("rows").addEventListener("click", (event) => {
    const item = event.target.closest(".item");
    if (!item || String(getSelection())) return;
    const row = rows.find((one) => one.item === item);
    setOpen(row, !isOpen(row));
    labelOpen();
    highlight(currentTerms());
  });
  find("open-all").addEventListener("click", () => {
    const seen = visibleRows();
    const open = !seen.every(isOpen);
    for (const row of seen) setOpen(row, open);
    labelOpen();
    highlight(currentTerms());
  });
  // What is asked anew is shown from its beginning.
  const anew = () => { most = FEW; update(); };
  find("more").addEventListener("click", () => { most += FEW; update(); });
  narrow.addEventListener("change", update);
  for (const link of document.querySelectorAll('a[href="#rules"]')) {
    link.addEventListener("click", () => { document.querySelector("#rules details").open = true; });
  }
  search.addEventListener("input", anew);
  search.addEventListener("keydown", (event) => { if (event.key === "Escape") { search.value = ""; anew(); } });
  for (const input of outcomes) input.addEventListener("change", anew);
  rule.addEventListener("change", () => { applyRule(); anew(); });
  ending.addEventListener("change", anew);
  other?.addEventListener("change", () => { against = Number(other.value); applyRule(); anew(); });
  behindButton.addEventListener("click", () => { behind = null; update(); search.focus(); });
  find("clear").addEventListener("click", clear);
  find("clear-all").addEventListener("click", clear);
  addEventListener("hashchange", openTarget);
  rule.value = String(data.rules.indexOf(data.rule)); // a reload keeps older choices
  applyRule();
  update();
  openTarget();
})();
