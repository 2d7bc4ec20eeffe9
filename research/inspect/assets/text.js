// The tokens of input and output, coloured by what the chosen head does with them or by numbers.
const texts = document.getElementById("texts");
const PAGE = 512; // tokens shown at once
const sides = ["input", "output"].filter((axis) => DATA.axes[axis].names.length).map((axis) => ({ axis, start: 0 }));
const numberNames = [...new Set(sides.flatMap(({ axis }) => Object.keys(DATA.axes[axis].numbers)))];

function makeTexts() {
  if (!sides.length) return;
  const bar = create("div", "", { class: "bar" });
  bar.append(create("h2", "Tokens"));
  if (numberNames.length) {
    const select = create("select", "", { id: "numbers" });
    if (MAPS.length) select.append(create("option", "weights of the chosen head", { value: "" }));
    for (const name of numberNames) select.append(create("option", name, { value: name }));
    select.addEventListener("change", () => change({ numbers: select.value }));
    const label = create("label", "colour ");
    label.append(select);
    bar.append(label);
  }
  const way = create("button", "", { type: "button", id: "direction" });
  way.addEventListener("click", () => change({ direction: state.direction === "reads" ? "read" : "reads" }));
  bar.append(way);
  texts.append(bar, create("p", "", { class: "note", id: "meaning" }));
  for (const side of sides) texts.append(makeSide(side));
  // Without maps the numbers are all that there is to show.
  if (!MAPS.length) {
    way.hidden = true;
    change({ numbers: numberNames[0] || "", theme: theme() });
  }
}

function makeSide(side) {
  const { names } = DATA.axes[side.axis];
  const box = create("div", "", { class: "text" });
  const head = create("div", "", { class: "side" });
  head.append(create("h3", side.axis));
  side.count = create("span", "", { class: "rank" });
  head.append(side.count);
  if (names.length > PAGE) {
    for (const [text, way] of [["← earlier", -1], ["later →", 1]]) {
      const button = create("button", text, { type: "button" });
      button.addEventListener("click", () => turn(side, side.start + way * PAGE));
      head.append(button);
    }
  }
  side.body = create("div", "", { class: "tokens", tabindex: "0", role: "group", "aria-label": `${side.axis} tokens: arrow keys move` });
  // Words and numbers without spaces of their own would run into one another.
  side.body.classList.toggle("apart", !names.some((name) => name.includes("·")));
  side.body.addEventListener("pointerover", (event) => point(side, event, "focus"));
  side.body.addEventListener("pointerleave", () => change({ focus: {} }));
  side.body.addEventListener("click", (event) => point(side, event, "held"));
  side.body.addEventListener("keydown", (event) => step(side, event));
  box.append(head, side.body);
  turn(side, 0);
  return box;
}

// Shows the page of tokens that starts at or before `start`.
function turn(side, start) {
  const { names } = DATA.axes[side.axis];
  const last = Math.floor((names.length - 1) / PAGE) * PAGE;
  side.start = Math.max(0, Math.min(last, Math.floor(start / PAGE) * PAGE));
  const end = Math.min(side.start + PAGE, names.length);
  const whole = names.length <= PAGE;
  side.count.textContent = whole ? `${names.length}` : `${side.start}–${end - 1} of ${names.length}`;
  side.spans = names.slice(side.start, end).map((name, i) => {
    const span = create("bdi", name);
    span.dataset.at = side.start + i;
    return span;
  });
  const parts = side.spans.flatMap((span) => (span.textContent.endsWith("↵") ? [span, create("br")] : [span]));
  side.body.replaceChildren(...parts);
  if (state.matrix || state.numbers) colourTexts();
}

// What a token means in the chosen map: its row, its column, or nothing.
function focusOf(axis, index) {
  if (!state.matrix) return {};
  const { row, column } = axesOf(state.map);
  const asRow = row.axis === axis && (column.axis !== axis || state.direction === "reads");
  if (asRow) return { row: Math.floor(index / row.pool) };
  return column.axis === axis ? { column: Math.floor(index / column.pool) } : {};
}

function point(side, event, name) {
  const at = event.target.dataset.at;
  if (at === undefined) return;
  const focus = focusOf(side.axis, Number(at));
  if (name === "held") hold(focus);
  else change({ focus });
  sayToken(side, Number(at));
}

function step(side, event) {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const { names } = DATA.axes[side.axis];
  const at = Math.max(0, Math.min(names.length - 1, (side.at ?? side.start - way) + way));
  if (at < side.start || at >= side.start + PAGE) turn(side, at);
  change({ held: focusOf(side.axis, at), focus: {} });
  sayToken(side, at);
}

// Names a token with all its numbers.
function sayToken(side, at) {
  side.at = at;
  const { names, numbers } = DATA.axes[side.axis];
  const parts = Object.entries(numbers).map(([name, values]) => `${name} ${format(values[at])}`);
  if (!parts.length) return;
  meaning(`${side.axis} ${at} “\u2068${names[at].slice(0, 60)}\u2069”: ${parts.join(", ")}`);
}

const meaning = (text) => (document.getElementById("meaning").textContent = text);

// One value for each token of a side, or null; NaN and null are tokens without one.
function valuesOf(axis) {
  const { names, numbers } = DATA.axes[axis];
  if (state.numbers) return own(numbers, state.numbers);
  const { row, column } = axesOf(state.map);
  const line = chosenLine();
  if (line.row !== undefined) {
    return column.axis === axis ? names.map((_, i) => state.matrix.value(line.row, Math.floor(i / column.pool))) : null;
  }
  if (line.column !== undefined) {
    return row.axis === axis ? names.map((_, i) => state.matrix.value(Math.floor(i / row.pool), line.column)) : null;
  }
  if (column.axis !== axis) return null;
  const means = meanColumns();
  return names.map((_, i) => means[Math.floor(i / column.pool)]);
}

let means = { of: null, values: null };

// The mean of each column over the rows that read.
function meanColumns() {
  const { matrix } = state;
  if (means.of === matrix) return means.values;
  const values = Array.from({ length: matrix.columns }, (_, column) => {
    let [sum, count] = [0, 0];
    for (let row = 0; row < matrix.rows; row++) {
      const value = matrix.value(row, column);
      if (!Number.isNaN(value)) [sum, count] = [sum + value, count + 1];
    }
    return count ? sum / count : NaN;
  });
  means = { of: matrix, values };
  return values;
}

function colourTexts() {
  const { row, column } = state.matrix ? axesOf(state.map) : { row: {}, column: {} };
  const now = pointed();
  for (const side of sides) {
    const values = valuesOf(side.axis);
    const known = (values || []).filter((v) => v !== null && !Number.isNaN(v));
    const limit = known.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const signed = known.some((v) => v < 0) && known.some((v) => v > 0);
    const inside = (axis, cell, at) => cell !== undefined && axis.axis === side.axis && Math.floor(at / axis.pool) === cell;
    side.spans.forEach((span, i) => {
      const at = side.start + i;
      const value = values?.[at] ?? NaN;
      const share = limit > 0 && !Number.isNaN(value) ? value / limit : 0;
      const part = signed ? share : Math.abs(share);
      const level = state.scale === "sqrt" && !state.numbers ? Math.sign(part) * Math.sqrt(Math.abs(part)) : part;
      const { back, text } = Math.abs(level) < 0.01 ? { back: "", text: "" } : cssOf(level, signed);
      span.style.backgroundColor = back;
      span.style.color = text;
      span.classList.toggle("pointed", inside(row, now.row, at) || inside(column, now.column, at));
    });
  }
}

function rangeOfNumbers() {
  const values = sides.flatMap(({ axis }) => own(DATA.axes[axis].numbers, state.numbers) || []).filter((v) => v !== null);
  if (!values.length) return "of which there are none.";
  const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const hues = low < 0 && high > 0 ? "blue is below zero, red above" : "strongest where furthest from zero";
  return `from ${format(low)} to ${format(high)}; ${hues}.`;
}

// Turns and scrolls the texts to what is held.
function showHeld() {
  const axes = axesOf(state.map);
  for (const side of sides) {
    const [cell, axis] = axes.row.axis === side.axis && state.held.row !== undefined
      ? [state.held.row, axes.row] : [state.held.column, axes.column];
    if (cell === undefined || axis.axis !== side.axis) continue;
    const at = cell * axis.pool;
    if (at < side.start || at >= side.start + PAGE) turn(side, at);
    const { body } = side;
    const span = side.spans[at - side.start];
    const below = span.offsetTop + span.offsetHeight > body.scrollTop + body.clientHeight;
    if (below || span.offsetTop < body.scrollTop) body.scrollTop = span.offsetTop - body.clientHeight / 2;
  }
}

function paintMeaning() {
  if (!state.matrix) return meaning(`Colours: ${state.numbers}, ${rangeOfNumbers()}`);
  const way = document.getElementById("direction");
  const { row, column } = axesOf(state.map);
  way.hidden = row.axis !== column.axis || row.axis === "audio";
  way.textContent = state.direction === "reads" ? "a token shows: what it reads" : "a token shows: who reads it";
  if (state.numbers) return meaning(`Colours: ${state.numbers}, ${rangeOfNumbers()}`);
  const line = chosenLine();
  meaning(
    line.row !== undefined ? `Colours: what ${describe(row, line.row)} reads.`
      : line.column !== undefined ? `Colours: who reads ${describe(column, line.column)}.`
        : `Colours: how much each ${column.axis === "audio" ? "state" : "token"} is read, the mean over rows.`,
  );
}

onChange((changed) => {
  if (!(state.matrix || state.numbers) || !sides.length) return;
  if (changed("matrix", "focus", "held", "direction", "numbers", "scale", "theme")) {
    colourTexts();
    paintMeaning();
  }
  if (state.matrix && changed("held")) showHeld();
});
