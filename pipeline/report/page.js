"use strict";
// Everything that a model wrote goes into the page through textContent, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 40;

function make(kind, className, text) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = text;
  return element;
}

function block(title, text, className) {
  const part = document.createDocumentFragment();
  if (text === null || text === undefined || text === "") return part;
  part.append(make("div", "soft", title), make("pre", className || "", text));
  return part;
}

function verdictTag(good, text) {
  return make("span", "tag " + (good ? "good" : "bad"), text);
}

function haystack(item) {
  const parts = [item.question, item.gold, item.thinking, item.answer, item.detail, item.reason, item.extracted];
  for (const responses of Object.values(item.models || {}))
    for (const response of responses) parts.push(response.thinking, response.answer, response.extracted);
  return parts.filter(Boolean).join("\n").toLowerCase();
}

function responseColumn(model, item) {
  const column = make("div", "column");
  const [right, drawn] = item.right[model] || [0, 0];
  column.append(make("h4", "", `${model}: ${right} of ${drawn} correct`));
  for (const response of item.models[model]) {
    const line = make("div");
    line.append(
      verdictTag(response.correct, response.correct ? "correct" : response.status),
      make("span", "soft", ` sample ${response.sample}, ${response.tokens} tokens, ${response.finish}` +
        (response.correct ? "" : `, ${response.why}, read answer: ${response.extracted ?? "none"}`)),
    );
    column.append(line, block("thinking", response.thinking, "thinking"), block("answer", response.answer));
  }
  if (!item.models[model].length) column.append(make("p", "soft", "no sample"));
  return column;
}

const views = {
  questions: {
    items: data.questions,
    groups: (item) => item.task,
    outcomes: data.models.includes("student") ? {
      "student right at least once": (item) => item.right.student[0] > 0,
      "student never right": (item) => item.right.student[0] === 0,
      "base right, student not": (item) => share(item, "base") > share(item, "student"),
      "student better than base": (item) => share(item, "student") > share(item, "base"),
      "teacher better than student": (item) => share(item, "teacher") > share(item, "student"),
      "no model right": (item) => data.models.every((model) => share(item, model) === 0),
    } : { "no model right": (item) => data.models.every((model) => share(item, model) === 0) },
    head(item) {
      const tags = data.models.map((model) => {
        const [right, drawn] = item.right[model] || [0, 0];
        return verdictTag(drawn > 0 && right * 2 >= drawn, `${model} ${right}/${drawn}`);
      });
      return [make("span", "line", item.question), ...tags];
    },
    body(item) {
      const columns = make("div", "columns");
      for (const model of data.models) columns.append(responseColumn(model, item));
      return [block(`question (${item.task})`, item.question), block("gold answer", item.gold), columns];
    },
  },
  traces: {
    items: data.traces,
    groups: (item) => item.reason,
    outcomes: {
      "verdict correct": (item) => item.status === "correct",
      "verdict wrong": (item) => item.status === "wrong",
      "verdict unverifiable": (item) => item.status === "unverifiable",
      "cut at the limit": (item) => item.finish === "length",
    },
    head(item) {
      const kept = item.reason === "kept";
      return [make("span", "line", item.question), make("span", "soft", `${item.tokens} tokens`),
        verdictTag(kept, kept ? "kept" : item.reason)];
    },
    body(item) {
      const why = item.reason === "kept" ? "kept" : `dropped by ${item.rule || "selection"}: ${item.reason}`;
      const line = make("p", "", `${why}. Verdict ${item.status || "none"}${item.why ? ` (${item.why})` : ""}, ` +
        `read answer: ${item.extracted ?? "none"}; ` +
        `finish ${item.finish}; source ${item.source}.`);
      return [line, block("detail", item.detail), block("question", item.question), block("gold answer", item.gold),
        block("thinking", item.thinking, "thinking"), block("answer", item.answer)];
    },
  },
};

function share(item, model) {
  const [right, drawn] = item.right[model] || [0, 0];
  return drawn ? right / drawn : 0;
}

function options(select, names, all) {
  select.replaceChildren(new Option(all, ""), ...names.map((name) => new Option(name, name)));
}

function start(root, name) {
  const view = views[name];
  const [search, group, outcome] = ["input", ".group", ".outcome"].map((part) => root.querySelector(part));
  const [list, more, state] = [".list", ".more", ".state"].map((part) => root.querySelector(part));
  const counts = new Map();
  for (const item of view.items) counts.set(view.groups(item), (counts.get(view.groups(item)) || 0) + 1);
  options(group, [...counts.keys()].sort(), name === "traces" ? "kept and dropped" : "all tasks");
  options(outcome, Object.keys(view.outcomes), "any outcome");
  let found = [];
  let shown = 0;

  function row(item) {
    const box = make("div", "item");
    const head = make("button");
    head.type = "button";
    head.setAttribute("aria-expanded", "false");
    head.append(...view.head(item));
    let body = null;
    head.addEventListener("click", () => {
      if (!body) {
        body = make("div", "body");
        body.append(...view.body(item));
        box.append(body);
      } else {
        body.hidden = !body.hidden;
      }
      head.setAttribute("aria-expanded", String(!body.hidden));
    });
    box.append(head);
    return box;
  }

  function grow() {
    const next = found.slice(shown, shown + PAGE);
    list.append(...next.map(row));
    shown += next.length;
    more.hidden = shown >= found.length;
    state.textContent = `${found.length.toLocaleString("en")} of ${view.items.length.toLocaleString("en")} match; ` +
      `${shown.toLocaleString("en")} listed`;
  }

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const test = view.outcomes[outcome.value];
    found = view.items.filter((item) => {
      if (group.value && view.groups(item) !== group.value) return false;
      if (test && !test(item)) return false;
      if (!words.length) return true;
      item.text = item.text || haystack(item);
      return words.every((word) => item.text.includes(word));
    });
    shown = 0;
    list.replaceChildren();
    grow();
  }

  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, 120);
  });
  group.addEventListener("change", apply);
  outcome.addEventListener("change", apply);
  more.addEventListener("click", grow);
  apply();
}

for (const root of document.querySelectorAll(".browser")) start(root, root.dataset.view);
