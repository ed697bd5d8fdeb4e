// The page: writes the data of the streams into the document. Sends no request to any other machine.

import { Chart } from "./charts.js";
import { Figures, Pictures } from "./stream.js";

const ANNOUNCE_MS = 4000; // shortest time between two announcements to a screen reader
const STEADY_MS = 1000; // how long an answer must stay before it is announced
const LONG_TITLE = 14;

const at = (id) => document.getElementById(id);
const picture = new Pictures(at("picture"));
const figures = new Figures(["about", "history", "result", "second", "end"], onEvent, () => ended || showStatus("lost"));

let about = { parts: [], kept_s: 300 };
let rows = [];
let paused = false;
let ended = false;
let hasResult = false; // a result arrived since the connection was made
let quiet = 0;
let announced = { title: "", at: -ANNOUNCE_MS, since: 0, text: "" };

const cell = (part, share) => (row) => row[2 + 2 * about.parts.indexOf(part) + share];
const sumUpTo = (count) => (row) => {
  const values = about.parts.slice(0, count).map((part) => cell(part, 0)(row));
  return values.includes(null) ? null : values.reduce((sum, value) => sum + value, 0);
};
const stacked = () => about.parts.filter((part) => part !== "age");

const charts = [
  new Chart(at("age-chart"), (row) => cell("age", 1)(row), (chart) => {
    chart.area(cell("age", 0), cell("age", 1), "age", 0.28);
    chart.line(cell("age", 0), "age");
  }),
  new Chart(at("fps-chart"), (row) => row[1], (chart) => {
    chart.area(() => 0, (row) => row[1], "fps", 0.14);
    chart.line((row) => row[1], "fps");
  }),
  new Chart(at("parts-chart"), (row) => sumUpTo(stacked().length)(row), (chart) => {
    stacked().forEach((part, place) => chart.area(sumUpTo(place), sumUpTo(place + 1), part, 0.85));
  }),
];

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function ms(value) {
  if (value === null || value === undefined) return "–";
  return value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0);
}

/** Show the state of the picture: in words, in colour, and over the picture. */
function showStatus(state) {
  const shown = paused && state !== "lost" && state !== "ended" ? "paused" : state;
  const words = {
    connecting: ["Connecting", "Connecting to the camera"],
    waiting: ["No answer yet", "Waiting for the first picture"],
    live: ["Live", ""],
    paused: ["Paused", "Paused: this picture does not move"],
    stale: ["No new picture", `No new picture for ${Math.round(quiet)} s`],
    late: ["Picture late", "The picture is delayed: the answer is newer"],
    lost: ["No connection", "No connection to the camera, trying again"],
    ended: ["Stopped", "The camera was stopped"],
  }[shown];
  document.body.dataset.state = shown;
  write(at("state"), words[0]);
  write(at("banner"), words[1]);
  at("banner").hidden = !words[1];
}

function bar(name) {
  const item = document.createElement("li");
  for (const part of ["name", "track", "share"]) {
    const node = item.appendChild(document.createElement(part === "track" ? "div" : "span"));
    node.className = part;
    if (part === "track") node.appendChild(document.createElement("div")).className = "fill";
  }
  write(item.firstChild, name);
  return item;
}

function drawBars(bars, leader) {
  const list = at("bars");
  while (list.children.length > bars.length) list.lastChild.remove();
  bars.forEach(([name, share, text], place) => {
    const item = list.children[place] ?? list.appendChild(bar(name));
    write(item.querySelector(".name"), name);
    write(item.querySelector(".share"), text);
    item.querySelector(".fill").style.setProperty("--share", share ?? 0);
    item.classList.toggle("leads", place === leader);
  });
}

function announce(title, figure) {
  const now = performance.now();
  if (title !== announced.title) announced = { ...announced, title, since: now };
  if (title !== announced.text && now - announced.since > STEADY_MS && now - announced.at > ANNOUNCE_MS) {
    announced = { ...announced, text: title, at: now };
    write(at("spoken"), figure ? `${title}, ${figure}` : title);
    at("picture").setAttribute("aria-label", `Live picture of the camera: ${title}`);
  }
}

function showResult(result) {
  hasResult = true;
  if (paused) return;
  picture.expect(result.number);
  write(at("label"), result.title);
  at("label").title = result.title;
  write(at("sure"), result.figure);
  drawBars(result.bars, result.leader);
  write(at("dropped"), String(result.dropped));
  announce(result.title, result.figure);
  if (!picture.late()) showStatus("live");
}

function showRows(list, pairs) {
  const written = JSON.stringify(pairs);
  if (list.dataset.written === written) return;
  list.dataset.written = written;
  list.replaceChildren(...pairs.flatMap(([name, text]) => {
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.textContent = name;
    value.textContent = text;
    return [term, value];
  }));
}

function showState(state) {
  quiet = state.quiet_s ?? 0;
  showRows(at("notes"), state.notes);
  at("notes-section").hidden = !state.notes.length;
  if (state.quiet_s === null) showStatus("waiting");
  else if (state.stale) showStatus("stale");
  else showStatus(picture.late() ? "late" : "live");
}

function showAbout(fields) {
  about = fields;
  ended = false;
  hasResult = false;
  const identity = new Map(fields.identity);
  const model = [identity.get("model"), identity.get("precision")].filter(Boolean).join(" · ");
  write(at("title"), model || "ufovit camera");
  document.title = model ? `${model} · ufovit camera` : "ufovit camera";
  const verdict = identity.get("verdict");
  at("verdict").hidden = !verdict;
  if (verdict) {
    const word = verdict.split(":")[0].trim().slice(0, 24);
    write(at("verdict"), `Verdict: ${word}`);
    at("verdict").className = `badge ${["pass", "fail", "inconclusive"].find((known) => word.toLowerCase().startsWith(known)) ?? ""}`;
  }
  write(at("stamp"), identity.get("weights") ?? ""); // a build with random weights is marked at the top
  at("stamp").hidden = !identity.has("weights");
  showRows(at("identity"), fields.identity);
  at("label").classList.toggle("long", fields.longest > LONG_TITLE); // fixed per build: a changing size would be restless
  at("bars").classList.toggle("many", fields.bars > 5);
  write(at("caption"), fields.caption);
  at("bars").replaceChildren();
  at("parts").replaceChildren(...fields.parts.map(tableRow));
  showState(fields);
  if (!paused) picture.start();
}

function tableRow(part) {
  const row = document.createElement("tr");
  const name = row.appendChild(document.createElement("th"));
  name.scope = "row";
  if (part !== "age") name.appendChild(document.createElement("span")).className = `swatch ${part}`;
  name.append(part === "age" ? "total delay" : part);
  for (const share of ["p50", "p95"]) row.appendChild(document.createElement("td")).className = `n ${share}`;
  return row;
}

function showSpeed() {
  charts.forEach((chart) => chart.show(rows));
  const row = rows[rows.length - 1];
  if (!row) return;
  write(at("fps"), row[1] === null ? "–" : row[1] < 10 ? row[1].toFixed(1) : row[1].toFixed(0));
  write(at("inference"), ms(cell("inference", 0)(row)));
  write(at("age50"), ms(cell("age", 0)(row)));
  write(at("age95"), ms(cell("age", 1)(row)));
  about.parts.forEach((part, place) => {
    const cells = at("parts").children[place].querySelectorAll("td");
    write(cells[0], ms(cell(part, 0)(row)));
    write(cells[1], ms(cell(part, 1)(row)));
  });
  const [age, fps, parts] = charts.map((chart) => chart.canvas);
  age.setAttribute("aria-label", `Delay from picture to answer: now p50 ${ms(cell("age", 0)(row))}, p95 ${ms(cell("age", 1)(row))} milliseconds`);
  fps.setAttribute("aria-label", `Results per second: now ${row[1]}`);
  parts.setAttribute("aria-label", `Parts of the latency, p50: ${stacked().map((part) => `${part} ${ms(cell(part, 0)(row))}`).join(", ")} milliseconds`);
}

function onEvent(name, value) {
  if (name === "about") showAbout(value);
  else if (name === "history") rows = value;
  else if (name === "result") showResult(value);
  else if (name === "second") {
    rows = [...rows, value.row].slice(-about.kept_s);
    showState(value);
  } else if (name === "end") {
    ended = true;
    showStatus("ended");
  }
  if (name === "history" || name === "second") showSpeed();
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  write(at("pause"), paused ? "Resume" : "Pause");
  if (paused) picture.stop();
  else picture.start();
  showStatus(hasResult ? "live" : "waiting");
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    figures.stop(); // a hidden page costs the camera nothing
    picture.stop();
  } else {
    showStatus("connecting");
    figures.start();
  }
});

showStatus("connecting");
figures.start();
