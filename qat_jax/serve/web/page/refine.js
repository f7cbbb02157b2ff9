// What a person says about results: marks (this one, not that one, seen) and aspects (alike in, never mind, change).

import { at, make } from "./results.js";

export let said = empty();
const before = []; // what was said before each mark, for undo

function empty() {
  return { right: [], wrong: [], seen: [], alike: [], ignore: [], change: "" };
}

// Fields of a request. `both`: there are a picture and words, so that words can change something.
export function fields(both) {
  const { change, ...lists } = said;
  const filled = Object.fromEntries(Object.entries(lists).filter(([, list]) => list.length));
  return { ...filled, ...(both && change ? { change: change === "?" ? true : change } : {}) };
}

export function toLink(link, both) {
  for (const name of ["right", "wrong", "alike", "ignore"]) for (const one of said[name]) link.append(name, one);
  if (both && said.change) link.set("change", said.change);
}

// Returns what a link says that cannot be had. What was seen is in the history alone: it would make a link too long.
export function fromLink(link, aspects, state) {
  said = empty();
  for (const name of ["right", "wrong"]) said[name] = link.getAll(name);
  for (const name of ["alike", "ignore"]) said[name] = link.getAll(name).filter((one) => aspects.includes(one));
  const change = link.get("change") ?? "";
  said.change = change === "?" || aspects.includes(change) ? change : "";
  said.seen = state?.seen ?? [];
  const there = new Set([...aspects, "?"]);
  const lost = [...link.getAll("alike"), ...link.getAll("ignore"), ...(change ? [change] : [])].filter((one) => !there.has(one));
  return lost.length ? `This link names the aspects ${lost.join(", ")}, which are not to be had here; they are left out.` : "";
}

function remember() {
  before.push(structuredClone(said));
}

export function mark(name, id) {
  remember();
  for (const list of ["right", "wrong"]) said[list] = said[list].filter((one) => one !== id);
  said[name].push(id);
}

export function nextPage(ids) {
  remember();
  said.seen = [...new Set([...said.seen, ...ids])].slice(-10000);
}

export function clearMarks() {
  if (!said.right.length && !said.wrong.length && !said.seen.length) return;
  remember();
  said = { ...said, right: [], wrong: [], seen: [] };
}

export function forget() {
  said = { ...said, right: [], wrong: [], seen: [] };
  before.length = 0;
}

export function undo() {
  said = { ...before.pop(), alike: said.alike, ignore: said.ignore, change: said.change };
}

export function toggle(name, aspect) {
  const other = name === "alike" ? "ignore" : "alike";
  said[other] = said[other].filter((one) => one !== aspect);
  said[name] = said[name].includes(aspect) ? said[name].filter((one) => one !== aspect) : [...said[name], aspect];
  if (name === "alike" && said.alike.length) said.change = "";
}

export function setChange(value) {
  said.change = value;
  if (value) said.alike = [];
}

// Draws marks, chips and the question what words change. `go` searches anew, `picture` shows an item's picture.
export function show(aspects, both, go, picture) {
  const marked = [...said.right.map((id) => ["right", id]), ...said.wrong.map((id) => ["wrong", id])];
  at("marks").hidden = !marked.length && !said.seen.length && !before.length;
  at("undo").disabled = !before.length;
  at("clear").hidden = !marked.length && !said.seen.length;
  at("marked").replaceChildren(...marked.map(([name, id]) => chip(name, id, go, picture)));
  const hidden = said.wrong.length + said.seen.length;
  at("left-out").textContent = hidden ? `${hidden} left out` : "";
  at("words").hidden = !aspects.length;
  for (const name of ["alike", "ignore"]) {
    const focused = document.activeElement?.dataset.aspect;
    at(name).replaceChildren(...aspects.map((aspect) => make("button", { type: "button", className: "chip", ariaPressed: String(said[name].includes(aspect)), data: { aspect: `${name} ${aspect}` }, onclick: () => (toggle(name, aspect), go()) }, aspect)));
    [...at(name).children].find((one) => one.dataset.aspect === focused)?.focus();
  }
  const count = said.alike.length + said.ignore.length;
  at("word-count").textContent = count ? ` (${count})` : "";
  at("words").open ||= count > 0;
  at("change-label").hidden = !both || !aspects.length;
  if (at("change").childElementCount === 0) {
    const option = (value, text) => make("option", { value }, text);
    at("change").append(option("", "nothing, find both"), option("?", "what they name"), ...aspects.map((one) => option(one, one)));
  }
  at("change").value = said.change;
}

function chip(name, id, go, picture) {
  const label = name === "right" ? "this one" : "not that";
  const remove = () => (remember(), (said[name] = said[name].filter((one) => one !== id)), go());
  const button = make("button", { type: "button", className: `chip ${name}`, title: `Take back: ${label}, ${id}`, ariaLabel: `Take back ${label}, ${id}`, onclick: remove });
  if (picture) {
    const image = make("img", { alt: "" });
    image.onerror = () => image.remove();
    picture(image, id);
    button.append(image);
  } else button.append(id.slice(0, 20));
  button.append(name === "right" ? " ✓" : " ✕");
  return button;
}
