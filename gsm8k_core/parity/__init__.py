"""Whether two backends compute the same: a ladder of checks, each with a control that must fail."""
