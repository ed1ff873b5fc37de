// Tables of the evaluation, drawn from small JSON. Words reach the page through textContent alone.

const root = element.querySelector(".qt-evaluation");

function make(tag, name = "", text = null) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== null) node.textContent = text;
  return node;
}

function cellOf(value, column, top) {
  const words = column.kind === "words";
  const cell = make("td", words ? "qt-words" : "");
  if (value === null || value === "") {
    cell.textContent = words ? "" : "–";
  } else if (column.kind === "score" && typeof value === "number") {
    cell.textContent = value.toFixed(2);
    cell.classList.toggle("qt-top", value === top);
  } else if (column.kind === "percent" && typeof value === "number") {
    const box = make("span", "qt-cell");
    const meter = make("span", "qt-meter");
    const fill = make("span");
    fill.style.width = `${Math.min(100, Math.max(0, value))}%`;
    meter.append(fill);
    box.append(meter, value.toFixed(2));
    cell.append(box);
  } else {
    cell.textContent = String(value);
  }
  return cell;
}

function drawTable(view) {
  const tops = view.columns.map((column, place) => {
    const values = view.rows.filter((row) => !row.summary).map((row) => row.cells[place]);
    const numbers = values.filter((value) => typeof value === "number");
    return column.kind === "score" && numbers.length > 1 ? Math.max(...numbers) : null;
  });
  const table = make("table");
  table.append(make("caption", "", view.title));
  const head = make("tr");
  for (const column of view.columns) {
    const cell = make("th", column.kind === "words" ? "qt-words" : "", column.name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = make("tbody");
  for (const row of view.rows) {
    const line = make("tr", row.summary ? "qt-summary" : "");
    line.append(...row.cells.map((value, place) => cellOf(value, view.columns[place], tops[place])));
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.append(top, body);
  const scroll = make("div", "qt-scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", view.title);
  scroll.append(table);
  return scroll;
}

function show(view) {
  root.replaceChildren();
  if (!view || !view.rows) {
    root.append(make("p", "qt-empty", view?.empty ?? ""));
    return;
  }
  root.append(drawTable(view));
  if (view.note) root.append(make("p", "qt-note", view.note));
}

watch("value", () => show(props.value));
show(props.value);
