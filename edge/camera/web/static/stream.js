// The two streams of the page: figures (server-sent events) and pictures (JPEGs, one part of the answer after the other).

const SILENT_MS = 4000; // the server sends every second
const RETRY_MS = 2000;

/** Figures; calls `onEvent(name, value)` for every event, and `onLost()` while the server is unreachable. */
export class Figures {
  constructor(names, onEvent, onLost) {
    Object.assign(this, { names, onEvent, onLost, source: null, last: 0 });
    setInterval(() => this.check(), 1000);
  }

  start() {
    if (this.source) return;
    this.last = performance.now();
    this.source = new EventSource("/figures");
    for (const name of this.names) {
      this.source.addEventListener(name, (event) => {
        this.last = performance.now();
        this.onEvent(name, JSON.parse(event.data));
      });
    }
    this.source.addEventListener("error", () => this.failed());
  }

  stop() {
    this.source?.close();
    this.source = null;
  }

  check() {
    if (this.source && performance.now() - this.last > SILENT_MS) {
      this.onLost();
      if (performance.now() - this.last > 3 * SILENT_MS) {
        this.stop(); // a connection that broke without notice, as on a sleeping phone
        this.start();
      }
    }
  }

  failed() {
    this.onLost();
    if (this.source?.readyState !== EventSource.CLOSED) return; // the browser retries by itself
    this.stop();
    setTimeout(() => this.again(), RETRY_MS);
  }

  /** After a refusal: if the server requires a token (it was restarted), reloading the page leads to the login form. */
  async again() {
    try {
      const answer = await fetch("/static/page.js", { method: "HEAD" });
      if (answer.status === 401) return location.reload();
    } catch {
      // not reachable yet: try again
    }
    if (!document.hidden) this.start();
  }
}

/** The next whole part of a multipart stream, {number, jpeg, rest}; null while it has not arrived. */
export function takePart(bytes) {
  let end = -1;
  for (let at = 0; at + 3 < bytes.length && end < 0; at++) {
    if (bytes[at] === 13 && bytes[at + 1] === 10 && bytes[at + 2] === 13 && bytes[at + 3] === 10) end = at + 4;
  }
  if (end < 0) return null;
  const head = new TextDecoder().decode(bytes.subarray(0, end));
  const [length, number] = ["Content-Length", "X-Result"].map((name) => Number(head.match(`${name}: (\\d+)`)?.[1]));
  if (!(length >= 0)) throw new Error("a part without length");
  if (bytes.length < end + length) return null;
  return { number, jpeg: bytes.slice(end, end + length), rest: bytes.subarray(end + length) };
}

/** Pictures, drawn on a canvas; while stopped it keeps the last one. `late()`: whether the stream stalled. */
export class Pictures {
  constructor(canvas) {
    Object.assign(this, { canvas, context: canvas.getContext("2d"), stream: null, shown: -1, due: null });
  }

  start() {
    this.due = null;
    this.ask();
  }

  ask() {
    this.stop();
    this.stream = new AbortController();
    this.follow(this.stream.signal);
  }

  stop() {
    this.stream?.abort();
    this.stream = null;
  }

  /** An answer of this number arrived: its picture, or a newer one, is due. */
  expect(number) {
    if (this.stream && number !== this.shown) this.due ??= performance.now();
  }

  late() {
    return this.stream !== null && this.due !== null && performance.now() - this.due > SILENT_MS;
  }

  async follow(signal) {
    try {
      await this.read(signal);
    } catch {
      // disconnected, refused, or not a picture: try again
    }
    setTimeout(() => signal.aborted || this.ask(), RETRY_MS);
  }

  async read(signal) {
    const answer = await fetch("/picture", { signal });
    if (!answer.ok) return;
    const reader = answer.body.getReader();
    let held = new Uint8Array(0);
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = joined;
      let newest = null; // a slow browser shows the newest, not all
      for (let part = takePart(held); part; part = takePart(held)) {
        newest = part;
        held = part.rest;
      }
      if (newest) await this.draw(newest, signal);
    }
  }

  async draw(part, signal) {
    const bitmap = await createImageBitmap(new Blob([part.jpeg], { type: "image/jpeg" }));
    if (signal.aborted) return;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
    }
    this.context.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.canvas.hidden = false;
    this.shown = part.number;
    this.due = null;
  }
}
