"""The script inside report.html: tables sort by a click on a heading, runs are selected by a check box."""

SCRIPT = """
"use strict";
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replace(/,/g, "").replace(/^\\+/, "").split(" ")[0]);
  return text !== "" && Number.isFinite(number) ? number : text.toLowerCase();
}
function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}
function sort(heading) {
  const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = Array.from(body.rows).map((row, place) => [value(row, column), place, row]);
  rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]) || a[1] - b[1]);
  for (const [, , row] of rows) body.append(row);
}
for (const heading of document.querySelectorAll("th")) {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sort(heading));
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(heading); });
}
function show(box) {
  for (const line of document.querySelectorAll(`[id$="-run-${box.value}"]`))
    line.style.display = box.checked ? "" : "none";
  box.closest("tr").classList.toggle("unselected", !box.checked);
}
const boxes = Array.from(document.querySelectorAll("input.run"));
for (const box of boxes) box.addEventListener("change", () => show(box));
for (const button of document.querySelectorAll("button[data-select]"))
  button.addEventListener("click", () => {
    for (const box of boxes) { box.checked = button.dataset.select === "all"; show(box); }
  });
for (const box of boxes) show(box);  // a reload keeps the boxes as they were
""".strip()
