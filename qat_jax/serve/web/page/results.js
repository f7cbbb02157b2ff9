// What the page draws: items, and why they are where they are.

export const SIDES = ["plain", "adapted"];

export const at = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const { data = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

// One item. `on` has what its buttons do, how a picture is shown (false: there are none), and whether scores are.
export function card(entry, on) {
  const name = entry.metadata.caption ?? entry.metadata.text ?? entry.id;
  const like = make("button", { type: "button", className: "like", title: `${name}\nMore like this`, onclick: () => on.moreLike(entry.id) });
  const words = () => make("span", { className: "words" }, name);
  if (on.picture) {
    const image = make("img", { alt: name, loading: "lazy", decoding: "async", width: 160, height: 160 });
    image.onerror = () => image.replaceWith(words());
    on.picture(image, entry.id);
    like.append(image);
  } else {
    like.append(words());
  }
  like.append(make("span", { className: "hidden" }, ", more like this"));
  const edges = ["left", "top", "right", "bottom"].map((edge) => entry.metadata[`box_${edge}`]);
  if (on.picture && edges.every((edge) => typeof edge === "number") && edges[2] - edges[0] < 1) {
    like.classList.add("whole");
    like.append(boxed(...edges));
  }
  const line = make("div", { className: "line" }, make("span", {}, String(entry.rank)), ...moved(entry));
  if (typeof entry.evidence === "number") line.append(make("span", { className: "evidence", title: "how likely it is to be what you look for" }, `${Math.round(100 * entry.evidence)} %`));
  if (typeof entry.metadata.second === "number") line.append(make("span", { className: "second", title: "when it is shown, in minutes and seconds" }, clock(entry.metadata.second)));
  if (entry.alike > 1) line.append(make("span", { className: "alike", title: "pictures that are nearly the same, this one counted" }, `${entry.alike} alike`));
  if (on.scores) line.append(make("span", { className: "score" }, entry.score.toFixed(3)));
  line.append(make("button", { type: "button", className: "why", onclick: () => on.why(entry), ariaLabel: `Why ${name}` }, "why"));
  const button = (sign, text, hint) => make("button", { type: "button", className: sign, title: hint, ariaLabel: `${hint}: ${name}`, onclick: () => on.mark(sign, entry.id) }, text);
  const marks = make("div", { className: "say" }, button("right", "this one", "This one: find more like it"), button("wrong", "not that", "Not that: hide it"));
  const changes = [];
  if (on.edit) {
    const change = (text, hint, work) => make("button", { type: "button", title: hint, ariaLabel: `${hint}: ${name}`, onclick: work }, text);
    changes.push(make("div", { className: "say" }, change("edit", "Edit what is known of it", () => on.edit(entry)), change("remove", "Remove it from the collection", () => on.remove(entry))));
  }
  return make("li", { className: "card", data: { id: entry.id } }, like, line, marks, ...changes);
}

// The box of a crop on its picture, which is shown whole.
function boxed(left, top, right, bottom) {
  const box = make("span", { className: "box" });
  Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
  return box;
}

// A second of a video as 2:05, or 2:05.5.
const clock = (second) => {
  const tenths = Math.round(10 * second);
  const [minutes, rest] = [Math.floor(tenths / 600), (tenths % 600) / 10];
  return `${minutes}:${rest < 10 ? "0" : ""}${rest}`;
};

function moved(entry) {
  if (!("plain_rank" in entry)) return [];
  const by = entry.plain_rank === null ? null : entry.plain_rank - entry.rank;
  if (by === 0) return [];
  const [className, sign, words] =
    by === null ? ["up", "▲ new", "not among the first 100 before"] : by > 0 ? ["up", `▲ ${by}`, `up ${by} places`] : ["down", `▼ ${-by}`, `down ${-by} places`];
  return [make("span", { className, title: words }, make("span", { ariaHidden: "true" }, sign), make("span", { className: "hidden" }, words))];
}

// Why an item is where it is, as elements.
export function explained(item, how, notes, entry, picture) {
  const number = (value, digits = 4) => make("td", { className: "number" }, value === null || value === undefined ? "–" : typeof value === "number" && digits ? value.toFixed(digits) : value.toLocaleString());
  const row = (name, key, digits) => make("tr", {}, make("th", { scope: "row" }, name), number(item.plain[key], digits), number(item.adapted?.[key], digits));
  const head = (...names) => make("tr", {}, ...names.map((name, i) => make("th", { scope: "col", className: i ? "number" : "" }, name)));
  const parts = [
    make("p", { className: "faint" }, entry.metadata.caption ?? entry.id),
    make("table", {}, head("", "plain", "adapted"), row("rank among all", "rank", 0), row("score", "score"), row("numerator q′·T z", "numerator"), row("length |T z|", "length")),
  ];
  if (item.parts.length) {
    const names = { text: "the words", picture: "the picture", vector: "the vector" };
    const name = (part) => (part.of === "mark" ? `your mark “this one”: ${part.item}` : part.of === "aspect" ? `the aspect ${part.name} (with it, less without it)` : part.item ? `like ${part.item}` : names[part.of]);
    const sorted = [...item.parts].sort((a, b) => (a.of === "aspect") - (b.of === "aspect") || b.score - a.score);
    parts.push(make("h3", {}, "What its adapted score is made of"));
    parts.push(make("table", {}, head("", "score"), ...sorted.map((part) => make("tr", {}, make("th", { scope: "row" }, name(part)), number(part.score)))));
  }
  if (how.cosine !== null) parts.push(make("p", {}, `The adapted query has a cosine of ${how.cosine.toFixed(3)} with the query as it was.`));
  if (how.expert) {
    const { number: which, of, cosine, like } = how.expert;
    parts.push(make("p", {}, `Expert ${which + 1} of ${of} serves it, the nearest: the mean of its training images has a cosine of ${cosine.toFixed(3)} with the query${like ? `, and ${like} is most like them here` : ""}.`));
  }
  if (how.remembered.length) {
    const rows = how.remembered.map((pair) => {
      const cell = make("td", {});
      if (picture) {
        const image = make("img", { alt: pair.like });
        image.onerror = () => image.replaceWith(pair.like);
        picture(image, pair.like);
        cell.append(image);
      } else cell.append(pair.like);
      return make("tr", {}, cell, number(pair.share, 3), number(pair.cosine, 3));
    });
    parts.push(make("h3", {}, `What moved it: the nearest of ${how.pairs.toLocaleString()} remembered training pairs`));
    parts.push(make("table", {}, head("most like its image here", "share", "cosine of its query"), ...rows));
  } else if (item.adapted && !how.expert) parts.push(make("p", { className: "faint" }, "The adapter remembers no training pairs for such queries: what it has learned moved this one as a whole."));
  for (const note of notes) parts.push(make("p", {}, note));
  return parts;
}

// A field or two for each column to filter by.
export function fieldsOf(columns) {
  const fields = [];
  for (const [column, about] of Object.entries(columns)) {
    const data = { column };
    if (about.values) {
      const kind = about.type === "bool" ? "bool" : "text";
      const options = about.values.map((value) => make("option", { value: String(value) }, String(value)));
      fields.push(make("label", {}, column, make("select", { data: { ...data, kind } }, make("option", { value: "" }, "any"), ...options)));
    } else if ("least" in about) {
      const kind = about.type.includes("int") ? "whole" : "number";
      const end = (name, hint) => make("input", { type: "number", step: "any", placeholder: `${hint} ${about[name] ?? ""}`, ariaLabel: `${column}, ${name}`, data: { ...data, kind, end: name } });
      fields.push(make("fieldset", {}, make("legend", {}, column), make("div", {}, end("least", "from"), end("most", "to"))));
    } else if (about.type.endsWith("string")) {
      fields.push(make("label", {}, `${column} is`, make("input", { type: "text", placeholder: "exactly", data: { ...data, kind: "text" } })));
    }
  }
  return fields;
}
