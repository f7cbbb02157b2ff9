// The search page: what is asked lies in the address, so that a link opens the same search again.

import * as collection from "./collection.js";
import * as refine from "./refine.js";
import { ask, send, show } from "./server.js";
import { SIDES, at, card, explained, fieldsOf, make } from "./results.js";

let info = null; // what GET /v1/info says
let subject = null; // {item} or {file, url}: the picture that is searched with
let leftOut = ""; // what a link says that cannot be had, to be told
let running = null; // the AbortController of the search under way
let drawn = {}; // what the results on the page were asked for: {query, file, refined}

// --- what is asked, to the address and back

function asked() {
  const filters = {};
  for (const field of at("columns").querySelectorAll("[data-column]")) {
    if (field.value === "") continue;
    const { column, end, kind } = field.dataset;
    const number = Number(field.value); // which rounds large whole ones: those go as they are written
    const exact = kind === "number" || (kind === "whole" && (Number.isSafeInteger(number) || !/^-?\d+$/.test(field.value)));
    const value = exact ? number : kind === "bool" ? field.value === "true" : field.value;
    if (end) filters[column] = { ...filters[column], [end]: value };
    else filters[column] = value;
  }
  return { text: at("text").value.trim(), weight: Number(at("weight").value), mode: info.adapter || !info.collection ? at("mode").value : "adapted", k: Number(at("k").value), filters, once: at("once").checked, diversity: Number(at("diversity").value) };
}

function remember() {
  const { text, weight, mode, k, filters, once, diversity } = asked();
  const link = new URLSearchParams();
  if (text) link.set("q", text);
  if (subject && !subject.file) link.set("item", subject.item);
  if (subject && text) link.set("weight", weight);
  refine.toLink(link, Boolean(subject && text));
  if (mode !== "both") link.set("mode", mode);
  if (k !== 12) link.set("k", k);
  if (Object.keys(filters).length) link.set("filters", JSON.stringify(filters));
  if (at("scores").checked) link.set("scores", 1);
  if (once) link.set("once", 1);
  if (diversity) link.set("diversity", diversity);
  const hash = `#${link}`;
  const { seen } = refine.said;
  const same = hash === location.hash || (hash === "#" && !location.hash);
  if (!same || seen.length !== (history.state?.seen ?? []).length) history.pushState({ seen }, "", hash);
}

function recall() {
  const link = new URLSearchParams(location.hash.slice(1));
  at("text").value = link.get("q") ?? "";
  at("weight").value = link.get("weight") ?? 0.5;
  at("weight-value").value = at("weight").value;
  at("mode").value = SIDES.includes(link.get("mode")) ? link.get("mode") : "both";
  at("k").value = ["12", "24", "48", "96"].includes(link.get("k")) ? link.get("k") : "12";
  at("scores").checked = link.has("scores");
  at("once").checked = link.has("once");
  at("diversity").value = link.get("diversity") ?? 0;
  leftOut = refine.fromLink(link, info.aspects, history.state);
  let filters = {};
  try {
    filters = JSON.parse(link.get("filters") ?? "{}") ?? {};
  } catch {
    leftOut = "The filters in this link cannot be read; they are left out.";
  }
  for (const field of at("columns").querySelectorAll("[data-column]")) {
    const value = filters[field.dataset.column];
    field.value = (field.dataset.end ? value?.[field.dataset.end] : value) ?? "";
  }
  const set = asked().filters;
  const sorted = (value) => JSON.stringify(value, Object.keys(value ?? {}).sort());
  const unset = Object.keys(filters).filter((column) => sorted(filters[column]) !== sorted(set[column]));
  if (unset.length) leftOut = `This link filters by ${unset.join(", ")} in a way that is not to be had here; that is left out.`;
  countFilters();
  choose(link.has("item") ? { item: link.get("item") } : null);
}

function choose(next) {
  if (subject?.url) URL.revokeObjectURL(subject.url);
  subject = next;
  at("subject").hidden = !subject;
  if (!subject) return;
  at("subject-name").textContent = subject.file ? subject.file.name || "Your picture" : `Like ${subject.item}`;
  const image = at("subject-picture");
  image.hidden = !subject.file && !info?.pictures;
  if (subject.url) image.src = subject.url;
  else if (info?.pictures) show(image, subject.item);
}

// --- searching

async function search() {
  const { text, weight, mode, k, filters, once, diversity } = asked();
  const query = [];
  if (subject && !subject.file) query.push({ item: subject.item });
  const both = Boolean(subject && text);
  const changes = both && refine.said.change !== "";
  if (text) query.push(both ? { text, weight: changes ? 1 : weight } : { text });
  refine.show(info.aspects, both, go, info.pictures && show);
  at("next-line").hidden = true;
  at("error").textContent = leftOut;
  leftOut = "";
  at("weight-label").hidden = !text || changes;
  at("examples").hidden = query.length > 0 || Boolean(subject) || !info.examples.length || !info.searches.text;
  running?.abort();
  if (!query.length && !subject) {
    for (const side of SIDES) at(side).hidden = true;
    at("status").textContent = "";
    return;
  }
  const own = (running = new AbortController());
  const file = subject?.file;
  const { right, alike, ignore, change, ...hidden } = refine.fields(both);
  const refined = JSON.parse(JSON.stringify({ right, alike, ignore, change })); // of what is there alone
  const parts = ["box_left", "second"].some((name) => name in info.columns); // crops or frames: each picture by its best one
  const crops = "picture" in info.columns && parts;
  const grouped = once ? { group: "duplicates" } : crops ? { group: "picture" } : {};
  const body = { mode, k, filters, diversity, ...grouped, ...refined, ...hidden, ...(query.length ? { query } : {}) };
  at("results").classList.add("busy");
  at("status").textContent = "Searching…";
  try {
    let found;
    if (file) {
      const form = new FormData();
      form.append("request", JSON.stringify(body));
      form.append("image", file);
      found = await ask("v1/search", { method: "POST", body: form, signal: own.signal }).then((a) => a.json());
    } else {
      found = await send("v1/search", body, own.signal);
    }
    drawn = { query, file, refined };
    draw(found);
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  } finally {
    if (running === own) at("results").classList.remove("busy");
  }
}

function fail(error) {
  at("error").textContent = error.message;
  at("status").textContent = "";
}

function draw(found) {
  let count = 0;
  for (const side of SIDES) {
    const entries = found.results[side];
    at(side).hidden = !entries?.length;
    at(side).querySelector("ol").replaceChildren(...(entries ?? []).map((entry) => card(entry, { picture: info.pictures && show, scores: at("scores").checked, moreLike, why, mark, ...(collection.changeable(info) && { edit, remove }) })));
    count = Math.max(count, entries?.length ?? 0);
  }
  at("next-line").hidden = !count;
  const { wait, ...spent } = found.milliseconds;
  const total = Object.values(spent).reduce((a, b) => a + b, wait);
  const notes = found.notes.map((note) => `; ${note}`).join("");
  at("nothing").hidden = !unlikely(found);
  const status = (info.adapter && found.evidence?.status) || "calibrated";
  const open = status === "calibrated" ? "" : `; how likely these are is ${status}`;
  at("status").textContent = `${count ? `${count} items` : "Nothing found"} in ${total.toFixed(0)} ms${notes}${open}`;
}

// Whether no result is as likely as one false alarm in ten allows.
function unlikely(found) {
  const least = found.evidence?.least["0.1"];
  return typeof least === "number" && !(found.results.adapted ?? []).some((entry) => entry.evidence >= least);
}

const edit = (entry) => collection.edit(entry, () => setTimeout(search, 1000)); // by then searches see it

async function remove(entry) {
  if (!confirm(`Remove ${entry.metadata.caption ?? entry.id} from the collection?`)) return;
  try {
    await collection.remove(entry.id);
    document.querySelectorAll(".card").forEach((item) => item.dataset.id === entry.id && item.remove());
  } catch (error) {
    fail(error);
  }
}

const add = (files) => collection.add([...files], (words) => (at("status").textContent = words));

function mark(name, id) {
  refine.mark(name, id);
  go();
}

function nextPage() {
  const shown = SIDES.flatMap((side) => (at(side).hidden ? [] : [...at(side).querySelectorAll("li")].map((item) => item.dataset.id)));
  refine.nextPage(shown);
  go();
  scrollTo({ top: 0 });
}

function moreLike(item) {
  refine.forget();
  at("text").value = "";
  choose({ item });
  go();
  scrollTo({ top: 0 });
}

function go() {
  remember();
  search();
}

// --- why

async function why(entry) {
  const dialog = at("why");
  at("why-body").replaceChildren("Looking…");
  dialog.showModal();
  try {
    const query = [...(drawn.file ? [{ image: await asBase64(drawn.file) }] : []), ...drawn.query];
    const { items, moved: how, notes } = await send("v1/why", { query, items: [entry.id], ...drawn.refined });
    at("why-body").replaceChildren(...explained(items[0], how, notes, entry, info.pictures && show));
  } catch (error) {
    at("why-body").replaceChildren(error.message);
  }
}

const asBase64 = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("The picture cannot be read."));
    reader.readAsDataURL(file);
  });

// --- filters and the rest of the page

function countFilters() {
  const count = Object.keys(asked().filters).length;
  at("filter-count").textContent = count ? ` (${count})` : "";
  at("filters").open ||= count > 0;
}

function take(file) {
  if (!file) return;
  if (file.size > info.limits.body_bytes - 10000) {
    fail(new Error(`The picture has ${(file.size / 2 ** 20).toFixed(0)} MiB; at most ${info.limits.body_bytes >> 20} are taken.`));
    return;
  }
  refine.forget();
  choose({ file, url: URL.createObjectURL(file) });
  go();
}

function listen() {
  let searched = at("text").value;
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (at("text").value !== searched) refine.forget(); // marks are about one query
    searched = at("text").value;
    go();
  });
  at("undo").addEventListener("click", () => (refine.undo(), go()));
  at("clear").addEventListener("click", () => (refine.clearMarks(), go()));
  at("next").addEventListener("click", nextPage);
  at("change").addEventListener("change", () => (refine.setChange(at("change").value), go()));
  at("jump").addEventListener("click", () => at("adapted").scrollIntoView());
  for (const id of ["mode", "k", "scores", "once", "diversity"]) at(id).addEventListener("change", go);
  at("columns").addEventListener("change", () => (countFilters(), go()));
  at("weight").addEventListener("input", () => (at("weight-value").value = at("weight").value));
  at("weight").addEventListener("change", go);
  at("remove").addEventListener("click", () => (choose(null), go(), at("text").focus()));
  at("file").addEventListener("change", (event) => (take(event.target.files[0]), (event.target.value = "")));
  addEventListener("paste", (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  addEventListener("popstate", () => (recall(), search()));
  at("add").addEventListener("change", (event) => add(event.target.files).then(() => (event.target.value = "")));
  addEventListener("dragenter", (event) => {
    at("drop").hidden = !event.dataTransfer.types.includes("Files");
    at("drop-add").hidden = !collection.changeable(info);
  });
  at("drop").addEventListener("dragleave", (event) => (at("drop").hidden = !event.relatedTarget || !at("drop").contains(event.relatedTarget)));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").hidden = true;
    if (event.target.id === "drop-add") add(event.dataTransfer.files);
    else take(event.dataTransfer.files[0]);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) (event.preventDefault(), at("text").focus());
  });
}

async function start() {
  try {
    info = await (await ask("v1/info")).json();
  } catch (error) {
    at("about").textContent = "";
    fail(error);
    setTimeout(start, 3000);
    return;
  }
  at("error").textContent = "";
  const about = () => (at("about").textContent = `${info.gallery.items.toLocaleString()} items${info.encoder ? `, ${info.encoder.name}` : ""}`);
  about();
  const fields = () => {
    at("columns").replaceChildren(...fieldsOf(info.columns));
    at("filters").hidden = !at("columns").childElementCount;
  };
  fields();
  const suggest = () => {
    const examples = info.searches.text ? info.examples : [];
    at("examples").append(...examples.map((text) => make("button", { type: "button", onclick: () => (choose(null), refine.forget(), (at("text").value = text), go()) }, text)));
    at("examples").hidden ||= !examples.length;
  };
  suggest();
  if (info.collection) {
    collection.watch(info, (next) => {
      info = next;
      about();
      if (!at("columns").childElementCount) fields();
      if (!at("examples").childElementCount && info.examples.length) suggest(), search();
    });
  }
  at("mode-label").hidden = Boolean(info.collection && !info.adapter);
  if (at("mode-label").hidden) at("adapted-title").textContent = "Results";
  at("text").disabled = !info.searches.text;
  at("choose").hidden = !info.searches.image;
  listen();
  recall();
  search();
}

start();
