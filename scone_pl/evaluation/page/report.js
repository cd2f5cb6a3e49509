"use strict";
// Cards carry what they are filtered by in data attributes; nothing is ever built from text.
const cards = [...document.querySelectorAll("article")];
const list = document.querySelector("#cards");
const controls = ["task", "fault", "order", "words"].map((id) => document.getElementById(id));
const [task, fault, order, words] = controls;
const count = document.querySelector("#count");

function show() {
  const wanted = words.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits =
      (!task.value || card.dataset.task === task.value) &&
      (!fault.value || card.dataset.faults.split(" ").includes(fault.value)) &&
      (!wanted || card.textContent.toLowerCase().includes(wanted));
    card.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  count.textContent = `${shown} of ${cards.length} items`;
}

function sort() {
  const column = order.value;
  const value = (card) => (card.dataset[column] === "" ? Infinity : Number(card.dataset[column]));
  list.append(...[...cards].sort((a, b) => value(a) - value(b) || a.dataset.place - b.dataset.place));
}

for (const control of controls) control.addEventListener("input", show);
order.addEventListener("input", sort);
show();
