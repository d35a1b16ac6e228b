"use strict";
// One question to each model, its answer as it comes. Text goes to the page through textContent only.
(() => {
  const find = (id) => document.getElementById(id);
  const [turns, form, question, send, stop, fresh, state] =
    ["turns", "ask", "question", "send", "stop", "new", "state"].map(find);
  const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu;
  const visible = (text) => text.replace(ODD, (mark) =>
    `\u27e8U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
  const FIRST = { trained: 1, base: 0 };
  let models = []; // {id, role, history, box}
  let running = null; // AbortController of the question that is being answered

  const make = (tag, name, text = "") => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.textContent = text;
    return element;
  };

  const headers = () => {
    const key = find("key")?.value;
    return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  };

  const say = (text, bad = false) => {
    state.textContent = visible(text);
    state.classList.toggle("bad", bad);
  };

  async function refused(answer) {
    const body = await answer.json().catch(() => null);
    return new Error(body?.error?.message ?? `the server answered ${answer.status}`);
  }

  async function load() {
    try {
      const answer = await fetch("/v1/models", { headers: headers() });
      if (!answer.ok) throw await refused(answer);
      const found = (await answer.json()).data.sort((one, other) => FIRST[one.role] - FIRST[other.role]);
      models = found.map(({ id, role }) => ({ id, role, history: [], box: addChoice(id, role) }));
      find("names").textContent = models.length > 1 ? "base and trained" : visible(models[0].id);
      say(models.map(({ id, role }) => `${role}: ${id}`).join(" \u00b7 "));
      send.disabled = false;
    } catch (error) {
      say(error.message, true);
    }
  }

  function addChoice(id, role) {
    const label = make("label"), box = make("input");
    box.type = "checkbox";
    box.checked = true;
    label.append(box, visible(`${role}: ${id}`));
    find("models").append(label);
    return box;
  }

  function request(model) {
    const body = { model: model.id, messages: [...model.history], stream: true, stream_options: { include_usage: true } };
    const system = find("system").value.trim();
    if (system) body.messages.unshift({ role: "system", content: system });
    const temperature = find("temperature").value, longest = find("longest").value;
    if (temperature !== "") body.temperature = Number(temperature);
    if (longest !== "") body.max_tokens = Number(longest);
    return body;
  }

  // Of a stream of server-sent events, the JSON of each.
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (left + value).split("\n\n");
      left = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data !== "[DONE]") yield JSON.parse(data);
      }
    }
  }

  async function ask(model, shown, note, signal) {
    let text = "", reason = "", tokens = 0;
    const begun = performance.now();
    try {
      const answer = await fetch("/v1/chat/completions",
        { method: "POST", headers: headers(), body: JSON.stringify(request(model)), signal });
      if (!answer.ok) throw await refused(answer);
      for await (const event of events(answer.body)) {
        if (event.error) throw new Error(event.error.message);
        const choice = event.choices[0];
        if (choice) {
          text += choice.delta.content ?? "";
          reason = choice.finish_reason ?? reason;
          shown.textContent = visible(text);
        }
        tokens = event.usage?.completion_tokens ?? tokens;
      }
      const seconds = ((performance.now() - begun) / 1000).toFixed(1);
      note.textContent = `${tokens} tokens, ${seconds} s${reason === "length" ? ", cut at its longest" : ""}`;
    } catch (error) {
      const stopped = error.name === "AbortError";
      note.textContent = stopped ? "stopped" : visible(error.message);
      note.classList.toggle("bad", !stopped);
      if (!text) model.history.pop(); // it was never answered
    }
    if (text) model.history.push({ role: "assistant", content: text });
  }

  async function submit(event) {
    event.preventDefault();
    const words = question.value.trim(), asked = models.filter((model) => model.box.checked);
    if (!words || running || !asked.length) return;
    running = new AbortController();
    const turn = make("article", "turn"), answers = make("div", "answers");
    turn.append(make("p", "question", visible(words)), answers);
    turns.append(turn);
    [send.disabled, stop.hidden, fresh.hidden] = [true, false, true];
    question.value = "";
    await Promise.all(asked.map((model) => {
      const box = make("section", `answer ${model.role}`), shown = make("pre"), note = make("p", "note");
      box.append(make("h2", "", visible(`${model.role}: ${model.id}`)), shown, note);
      answers.append(box);
      model.history.push({ role: "user", content: words });
      return ask(model, shown, note, running.signal);
    }));
    running = null;
    [send.disabled, stop.hidden, fresh.hidden] = [false, true, false];
    question.focus();
  }

  form.addEventListener("submit", submit);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  fresh.addEventListener("click", () => {
    turns.replaceChildren();
    for (const model of models) model.history = [];
    fresh.hidden = true;
    question.focus();
  });
  find("key")?.addEventListener("change", () => { find("models").querySelectorAll("label").forEach((one) => one.remove()); load(); });
  if (!find("key")) load();
  else say("This server wants its key: it goes under Settings.");
})();
