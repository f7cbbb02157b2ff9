// Requests to the server, with the key where it asks for one.

import { at } from "./results.js";

export async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it running?");
  }
  if (answer.status === 401) {
    await askForKey(key !== null && key === sessionStorage.getItem("key"));
    return ask(path, options);
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

export const send = (path, body, signal) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal }).then((a) => a.json());

function askForKey(wrong) {
  const dialog = at("ask");
  at("ask-title").textContent = wrong ? "This was not the key" : "This server asks for a key";
  if (!dialog.open) dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("key", at("key").value.trim().replace(/[^!-~]/g, "?")); // no header says others
      done();
    }, { once: true });
  });
}

// A picture's address takes no key, so where there is one the page fetches it itself.
export async function show(image, id) {
  const path = `v1/items?id=${encodeURIComponent(id)}&part=thumbnail`;
  if (!sessionStorage.getItem("key")) {
    image.src = path;
    return;
  }
  try {
    image.src = URL.createObjectURL(await (await ask(path)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}
