// What is around the maps, and the start.
const byId = (id) => document.getElementById(id);
const keys = byId("keys");

function paintRamp() {
  const { signed, greatest } = state.matrix;
  const canvas = byId("ramp");
  const image = new ImageData(256, 1);
  const colours = rampOf(signed);
  for (let i = 0; i < 256; i++) {
    const share = signed ? i / 127.5 - 1 : i / 255;
    const level = state.scale === "sqrt" ? Math.sign(share) * Math.sqrt(Math.abs(share)) : share;
    const at = 3 * indexOf(level, signed);
    image.data.set([...colours.subarray(at, at + 3), 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const limit = { head: format(greatest), row: "row’s greatest", one: "1" }[state.relative];
  byId("high").textContent = limit;
  byId("low").textContent = signed ? `−${limit}` : "0";
}

for (const name of ["scale", "relative", "measure"]) {
  byId(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
}
byId("sorted").addEventListener("change", (event) => change({ sorted: event.target.checked }));

function makeMeasures() {
  byId("measure").append(create("option", "none", { value: "" }));
  for (const name of measureNames) byId("measure").append(create("option", name, { value: name }));
  byId("measure").parentElement.hidden = !measureNames.length;
}

function cycle(name) {
  const select = byId(name);
  if (!select) return;
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  select.dispatchEvent(new Event("change"));
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT)$/.test(event.target.tagName)) return;
  if (event.key === "?") keys.showModal();
  else if (keys.open) return;
  else if (event.key === "s") cycle("scale");
  else if (event.key === "n") cycle("relative");
  else if (event.key === "r") byId("direction")?.click();
  else if (event.key === "Escape") {
    if (points(state.held)) change({ held: {}, focus: {} });
    else tileOf(state.map, state.head)?.cell.focus();
  }
});

byId("help").addEventListener("click", () => keys.showModal());
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  change({ theme: theme() });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => change({ theme: theme() }));
// Paper is white.
for (const [name, on] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(name, () => {
    printing = on;
    document.documentElement.classList.toggle("printing", on);
    change({ theme: theme() });
  });
}

onChange((changed) => {
  byId("sorting").hidden = !state.measure;
  if (state.matrix && changed("matrix", "scale", "relative", "theme")) paintRamp();
});

// The map's width is known once the page was laid out, and again when that moved a scroll bar.
const laidOut = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));

async function start() {
  makeMeasures();
  makeTexts();
  document.querySelector(".bench").hidden = !MAPS.length;
  if (MAPS.length) await showMaps();
  await laidOut();
  performance.mark("ready");
}

async function showMaps() {
  if (DATA.audio) sound = await unpack("audio");
  await makeTiles();
  arrange();
  change({ theme: theme() });
  const place = document.querySelector(".stack");
  change({ width: place.clientWidth });
  new ResizeObserver(() => change({ width: place.clientWidth })).observe(place);
  await choose(0, 0);
  markChosen();
}

start();
