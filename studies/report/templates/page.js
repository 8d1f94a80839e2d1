// Headers sort their table: ascending, descending, and back to the table's own order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return (cell.dataset.key ?? cell.textContent).trim().replaceAll("−", "-");
  };
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      heads.forEach((each) => (each.ariaSort = "none"));
      head.ariaSort = next;
      const rows = [...original];
      if (next !== "none") {
        const sign = next === "ascending" ? 1 : -1;
        // What has no figure comes last, either way.
        rows.sort((a, b) => {
          const [x, y] = [key(a, column), key(b, column)];
          return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
        });
      }
      body.append(...rows);
    });
  });
}
// What is folded away is printed all the same.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
