// A collection that changes: its state, pictures that are added, items that are edited or removed.

import { ask } from "./server.js";
import { at, make } from "./results.js";

const FILES = ["file", "file_name", "filename", "image", "image_path", "path"]; // which name an item's file
const SLOW = 15000, FAST = 1500; // milliseconds between two looks at the state

export const changeable = (info) => Boolean(info?.collection?.changes);

// Shows the state, and looks again for as long as the page is open. `told` gets every new info.
export function watch(info, told) {
  show(info);
  const { left, of } = info.collection;
  setTimeout(async () => {
    try {
      info = await (await ask("v1/info")).json();
      told(info);
    } catch {
      // the next look may reach the server again
    }
    watch(info, told);
  }, left || !of ? FAST : SLOW);
}

function show(info) {
  const { left, of, seconds_left: seconds, unreadable, watched, error } = info.collection;
  at("collection").hidden = false;
  at("notice").textContent = info.notice ?? "";
  at("progress").hidden = !left;
  at("progress").max = of || 1;
  at("progress").value = of - left;
  const time = seconds === null ? "" : seconds < 90 ? `, about ${seconds} s left` : `, about ${Math.round(seconds / 60)} min left`;
  const state = left ? `${(of - left).toLocaleString()} of ${of.toLocaleString()} pictures are read${time}` : watched ? "The folder is followed" : "";
  const { state: stage, said } = info.collection.learning ?? { said: [] };
  const words = { running: "It is being learnt what belongs together", done: "Learnt", failed: "Learning failed", "not begun": "Nothing is learnt" };
  const learning = stage in words ? `. ${[words[stage], said.join("; ")].filter(Boolean).join(": ")}` : "";
  at("state").textContent = error ? `The pictures cannot be looked at: ${error}` : state + learning;
  at("unreadable").hidden = !unreadable.length;
  at("unreadable").querySelector("summary").textContent = `${unreadable.length} pictures cannot be read`;
  at("unreadable").querySelector("ul").replaceChildren(...unreadable.map((one) => make("li", {}, `${one.id}: ${one.reason}`)));
  at("add-label").hidden = !changeable(info) || !info.searches.image;
}

// Adds pictures, one request each; `said` is told how it goes.
export async function add(files, said) {
  const wrong = [];
  let count = 0;
  for (const file of files) {
    said(`Adding ${file.name}…`);
    const form = new FormData();
    form.append("request", JSON.stringify({ metadata: file.name ? { name: file.name } : {} }));
    form.append("image", file);
    try {
      await ask("v1/items", { method: "POST", body: form });
      count += 1;
    } catch (error) {
      wrong.push(`${file.name}: ${error.message}`);
    }
  }
  said([`${count} pictures are added`, ...wrong].join("; "));
}

export const remove = (id) => ask(`v1/items?id=${encodeURIComponent(id)}`, { method: "DELETE" });

// Opens a form with an item's metadata; keeps what it says when it is sent.
export function edit(entry, done) {
  const dialog = at("edit");
  const rows = Object.entries(entry.metadata).filter(([name]) => !FILES.includes(name));
  const field = (name, value) => make("label", {}, name, make("input", { type: "text", value: String(value), data: { name, kind: typeof value } }));
  const fresh = ["name", "value"].map((what) => make("input", { type: "text", placeholder: `a new ${what}`, ariaLabel: `a new ${what}` }));
  at("edit-fields").replaceChildren(...rows.map(([name, value]) => field(name, value)), make("div", { className: "bar" }, ...fresh));
  at("edit-error").textContent = "";
  at("edit-form").onsubmit = async (event) => {
    if (event.submitter?.value === "cancel") return;
    event.preventDefault();
    const metadata = {};
    for (const input of at("edit-fields").querySelectorAll("[data-name]")) {
      if (input.value !== "") metadata[input.dataset.name] = valueOf(input.value, input.dataset.kind);
    }
    if (fresh[0].value) metadata[fresh[0].value] = fresh[1].value;
    try {
      await ask(`v1/items?id=${encodeURIComponent(entry.id)}`, { method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ metadata }) });
      dialog.close();
      done();
    } catch (error) {
      at("edit-error").textContent = error.message;
    }
  };
  dialog.showModal();
}

const valueOf = (text, kind) => (kind === "number" && text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : kind === "boolean" ? text === "true" : text);
