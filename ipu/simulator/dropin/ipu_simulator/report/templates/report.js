"use strict";
// The page works without this script: it adds hints for pointer and keyboard, and sorts, filters and groups
// the operations.
(() => {
  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // A page that was saved from a browser has what the script added before.
  document.querySelectorAll(".hint, .controls, tr.group").forEach((added) => added.remove());

  // Hints: each mark of a chart has a title. One mark of a chart is in the tab order; arrows move on.
  const panel = make("div", { id: "hint", className: "hint", hidden: true });
  panel.setAttribute("role", "status");
  document.body.append(panel);
  let current = null;
  const hide = () => {
    panel.hidden = true;
    current?.classList.remove("current");
    current = null;
  };
  const show = (mark) => {
    if (mark === current) return;
    hide();
    current = mark;
    mark.classList.add("current");
    panel.replaceChildren(...mark.querySelector("title").textContent.trim().split("\n")
      .map((line) => make("div", { textContent: line })));
    panel.hidden = false;
  };
  for (const chart of document.querySelectorAll("svg[role=img], svg[role=group]")) {
    const marks = [...chart.querySelectorAll("rect")].filter((mark) => mark.querySelector("title"));
    if (!marks.length) continue;
    // The children of an image aren't read.
    chart.setAttribute("role", "group");
    marks.forEach((mark, index) => {
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", mark.querySelector("title").textContent.trim());
      mark.setAttribute("tabindex", index ? "-1" : "0");
      mark.addEventListener("pointerenter", () => show(mark));
      mark.addEventListener("pointerleave", () => document.activeElement === mark || hide());
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", hide);
      mark.addEventListener("keydown", (event) => {
        const places = {
          ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: marks.length - 1,
          PageDown: Math.min(index + 20, marks.length - 1), PageUp: Math.max(index - 20, 0),
        };
        if (event.key === "Escape") hide();
        const next = marks[places[event.key]];
        if (!next) return;
        event.preventDefault();
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // Operations: sorted by any column, filtered by a text, grouped by module.
  const table = document.querySelector("table[aria-labelledby=costliest]");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const state = { column: 2, down: true, words: "", grouped: false };
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (one, other) => {
    const [left, right] = [value(one, state.column), value(other, state.column)];
    const order = typeof left === "number" ? left - right : left.localeCompare(right);
    return state.down ? -order : order;
  };
  const found = make("span");
  found.setAttribute("role", "status");
  const headOf = (module, members) => {
    const sum = (name) => members.reduce((total, row) => total + Number(row.dataset[name]), 0);
    const cycles = sum("cycles");
    const row = make("tr", { className: "group" });
    const name = make("th", { scope: "rowgroup", textContent: module });
    const share = make("td", { className: "number", textContent: `${(100 * sum("share")).toFixed(1)}%` });
    const number = make("td", { className: "number", textContent: Math.round(cycles).toLocaleString("en") });
    row.append(name, share, number, make("td", { colSpan: heads.length - 3 }));
    return { row, cycles, members };
  };
  const draw = () => {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = rows
      .filter((row) => words.every((word) => row.dataset.words.toLowerCase().includes(word)))
      .sort(compare);
    heads.forEach((head, column) => head.setAttribute(
      "aria-sort", column === state.column ? (state.down ? "descending" : "ascending") : "none"));
    if (state.grouped) {
      const groups = new Map();
      for (const row of shown) groups.set(row.dataset.module, [...(groups.get(row.dataset.module) ?? []), row]);
      const made = [...groups].map(([module, members]) => headOf(module, members));
      made.sort((one, other) => other.cycles - one.cycles);
      body.replaceChildren(...made.flatMap((group) => [group.row, ...group.members]));
    } else {
      body.replaceChildren(...shown);
    }
    found.textContent = `${shown.length} of ${rows.length} operations`;
  };
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", textContent: head.textContent });
    button.addEventListener("click", () => {
      const numbers = rows[0]?.cells[column].dataset.value !== undefined;
      state.down = state.column === column ? !state.down : numbers;
      state.column = column;
      draw();
    });
    head.replaceChildren(button);
  });
  const filter = make("input", { type: "search", id: "filter" });
  filter.addEventListener("input", () => { state.words = filter.value; draw(); });
  const group = make("input", { type: "checkbox", id: "group" });
  group.addEventListener("change", () => { state.grouped = group.checked; draw(); });
  const controls = make("div", { className: "controls" },
    make("label", {}, "Filter ", filter), make("label", {}, group, " Group by module"), found);
  table.closest(".scroll").before(controls);
  draw();
})();
