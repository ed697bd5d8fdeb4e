// Charts on a canvas: time to the right, the newest second at the right edge, the value upwards from zero.

const LEFT = 44; // room for the numbers of the value axis, CSS pixels
const BOTTOM = 22;
const TOP = 8;
const RIGHT = 6;
const SPANS = [60, 120, 300]; // seconds that a chart shows: the shortest that holds all rows

/** The smallest of 1, 2, 2.5, 5 times a power of ten at or above a third of the largest value: the distance of the lines. */
export function niceStep(most) {
  const third = Math.max(most, 1e-3) / 3;
  const power = 10 ** Math.floor(Math.log10(third));
  return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= third * 0.999);
}

/** A number of an axis with as many decimal places as the distance of the lines. */
export function axisText(value, step) {
  const digits = [0, 1, 2].find((count) => Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) < 1e-6) ?? 3;
  return value.toFixed(digits);
}

function colour(canvas, name) {
  return getComputedStyle(canvas).getPropertyValue(`--${name}`).trim();
}

export class Chart {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(row: (number|null)[]) => number|null} highest the largest value of a row
   * @param {(chart: Chart) => void} paint draws the series with `line` and `area`
   */
  constructor(canvas, highest, paint) {
    Object.assign(this, { canvas, highest, paint, rows: [] });
    this.context = canvas.getContext("2d");
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    const { canvas, context } = this;
    const ratio = window.devicePixelRatio || 1;
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    if (!this.width || !this.height) return;
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round(this.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "13px system-ui, sans-serif";
    const newest = this.rows.length ? this.rows[this.rows.length - 1][0] : 0;
    const oldest = this.rows.length ? this.rows[0][0] : 0;
    this.span = SPANS.find((span) => newest - oldest < span) ?? SPANS[SPANS.length - 1];
    this.newest = newest;
    const most = Math.max(0, ...this.rows.map((row) => this.highest(row) ?? 0));
    const step = niceStep(most);
    this.most = Math.max(step, Math.ceil(most / step - 1e-9) * step);
    this.grid(step);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, this.width - LEFT, this.height - BOTTOM + 1);
    context.clip();
    this.paint(this);
    context.restore();
  }

  x(second) {
    return this.width - RIGHT - ((this.newest - second) / this.span) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return this.height - BOTTOM - (value / this.most) * (this.height - BOTTOM - TOP);
  }

  grid(step) {
    const { context } = this;
    context.strokeStyle = colour(this.canvas, "line");
    context.fillStyle = colour(this.canvas, "muted");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (let value = 0; value <= this.most + step / 2; value += step) {
      const y = Math.round(this.y(value)) + 0.5;
      context.beginPath();
      context.moveTo(LEFT, y);
      context.lineTo(this.width - RIGHT, y);
      context.stroke();
      context.fillText(axisText(value, step), LEFT - 6, Math.max(y, 8));
    }
    context.textBaseline = "alphabetic";
    const minutes = this.span / 60;
    context.textAlign = "left";
    context.fillText(minutes === 1 ? "1 min ago" : `${minutes} min ago`, LEFT, this.height - 4);
    context.textAlign = "right";
    context.fillText("now", this.width - RIGHT, this.height - 4);
  }

  /** Consecutive rows that have a value, as lists of points; the line is broken where none was measured. */
  segments(value) {
    const lists = [];
    let open = null;
    for (const row of this.rows) {
      const reading = value(row);
      if (reading === null || reading === undefined || !Number.isFinite(reading)) {
        open = null;
      } else {
        if (open === null) lists.push((open = []));
        open.push([this.x(row[0]), this.y(reading), row]);
      }
    }
    return lists;
  }

  line(value, name) {
    const { context } = this;
    context.strokeStyle = colour(this.canvas, name);
    context.lineWidth = 2.5;
    context.lineJoin = "round";
    context.lineCap = "round";
    for (const points of this.segments(value)) {
      context.beginPath();
      context.moveTo(points[0][0] - (points.length === 1 ? 2 : 0), points[0][1]);
      for (const [x, y] of points) context.lineTo(x, y);
      context.stroke();
    }
  }

  /** Fill between two readings of a row. */
  area(low, high, name, opacity) {
    const { context } = this;
    context.fillStyle = colour(this.canvas, name);
    context.globalAlpha = opacity;
    for (const points of this.segments(high)) {
      context.beginPath();
      points.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
      for (const [x, , row] of [...points].reverse()) context.lineTo(x, this.y(low(row) ?? 0));
      context.closePath();
      context.fill();
    }
    context.globalAlpha = 1;
  }
}
