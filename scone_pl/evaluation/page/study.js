"use strict";
// Items and images come in an order of their own for each rater. What is saved are numbers: only the key, which is no
// part of this page, says whose images they are.
const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);
const choices = new Map(); // item -> {image: number or null, position, seconds}
let rater = "";
let order = [];
let at = 0;
let since = 0;

// A generator of numbers in [0, 1), seeded by a text: FNV-1a, then mulberry32.
function generatorOf(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(count, random) {
  const numbers = [...Array(count).keys()];
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [numbers[i], numbers[j]] = [numbers[j], numbers[i]];
  }
  return numbers;
}

function stored(value) {
  const name = `study ${content.study} ${rater}`;
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(name) ?? "[]");
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // A browser may keep nothing of a local file; then the choices live as long as the page.
  }
  return [];
}

function picture(url, description) {
  const image = document.createElement("img");
  image.alt = description;
  image.onload = () => image.classList.toggle("small", image.naturalWidth <= 128);
  image.src = url;
  return image;
}

function show() {
  byId("start").hidden = true;
  byId("question").hidden = at === order.length;
  byId("end").hidden = at < order.length;
  if (at === order.length) return;
  const { item, images } = order[at];
  const { instruction, references, images: urls } = content.items[item];
  byId("position").textContent = `${at + 1} of ${order.length}`;
  byId("instruction").textContent = instruction;
  byId("references").replaceChildren(
    ...references.map((url, i) => {
      const figure = document.createElement("figure");
      figure.append(picture(url, `reference ${i + 1}`), `reference ${i + 1}`);
      return figure;
    }),
  );
  byId("images").replaceChildren(
    ...images.map((image, position) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(choices.get(item)?.image === image));
      button.append(picture(urls[image], `image ${position + 1}`), String(position + 1));
      button.onclick = () => choose(position);
      return button;
    }),
  );
  byId("back").disabled = at === 0;
  since = performance.now();
}

// position: of the chosen image on the screen, from 0; null = none is best.
function choose(position) {
  const { item, images } = order[at];
  const seconds = Math.round((performance.now() - since) / 100) / 10;
  choices.set(item, { item, image: position === null ? null : images[position], position, seconds });
  stored([...choices.values()]);
  at += 1;
  show();
}

function save() {
  const saved = { study: content.study, rater, choices: [...choices.values()] };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(saved, null, 1)], { type: "application/json" }));
  link.download = `choices_${content.study}_${rater.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

byId("start").onsubmit = (event) => {
  event.preventDefault();
  rater = byId("rater").value.trim();
  if (!rater) return;
  const random = generatorOf(`${content.study} ${rater}`);
  const items = shuffled(content.items.length, random);
  order = items.map((item) => ({ item, images: shuffled(content.items[item].images.length, random) }));
  for (const choice of stored()) choices.set(choice.item, choice);
  const open = order.findIndex(({ item }) => !choices.has(item));
  at = open < 0 ? order.length : open;
  show();
};
byId("none").onclick = () => choose(null);
byId("back").onclick = byId("review").onclick = () => {
  at -= 1;
  show();
};
byId("save").onclick = byId("save_all").onclick = save;
document.addEventListener("keydown", (event) => {
  if (byId("question").hidden || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const number = Number.parseInt(event.key, 10);
  if (number === 0) choose(null);
  else if (number <= order[at].images.length) choose(number - 1);
});
