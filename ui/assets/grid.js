// The patch grid: one canvas, a mask, a cursor and a history. It knows pointers and keys, nothing of the server.

/**
 * @param canvas  The canvas element; it is never replaced, so focus survives every update.
 * @param options rows, columns to begin with; changed(kind): 'edit' (mask differs), 'end' (gesture over), 'move' (cursor only);
 *                rule() and setRule(rule): what belongs to a step of the history besides the mask.
 */
function createGrid(canvas, { rows, columns, changed, rule, setRule }) {
  const context = canvas.getContext('2d'), LIMIT = 100;
  let total = rows * columns;
  let hidden = new Uint8Array(total), picture = null, frame = 0;
  let past = [], future = [], cursor = 0, hover = -1, keys = false;
  let stroke = null; // {state, last, box, before}: what the gesture under way does

  // --- drawing ---------------------------------------------------------------------------------------------
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
  function ring(index, inner, outer) {
    const w = canvas.width / columns, h = canvas.height / rows, x = (index % columns) * w, y = Math.floor(index / columns) * h;
    const unit = Math.max(1, Math.round(w / 16));
    for (const [paint, width] of [[outer, unit * 3], [inner, unit * 1.4]]) {
      context.strokeStyle = paint; context.lineWidth = width;
      context.strokeRect(x + unit * 1.5, y + unit * 1.5, w - unit * 3, h - unit * 3);
    }
  }
  function draw() {
    frame = 0;
    const w = canvas.width / columns, h = canvas.height / rows;
    context.imageSmoothingQuality = 'high';
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    // Opaque patches first, lines on top: a gap between patches would show the hidden picture's outline.
    const fill = colour('--um-hidden'), line = colour('--um-hidden-line');
    hidden.forEach((isHidden, i) => {
      if (!isHidden) return;
      const x = (i % columns) * w, y = Math.floor(i / columns) * h;
      context.fillStyle = line; context.fillRect(x, y, w, h);
      context.fillStyle = fill; context.fillRect(x, y, w - 1, h - 1);
    });
    if (hover >= 0 && !stroke) ring(hover, 'rgba(255,255,255,.95)', 'rgba(0,0,0,.55)');
    if (keys && document.activeElement === canvas) ring(cursor, '#fff', '#000');
  }
  const redraw = () => { frame ||= requestAnimationFrame(draw); };

  // --- the mask and its history ----------------------------------------------------------------------------
  const step = () => ({ hidden: hidden.slice(), rule: rule() });
  const same = (a, b) => a.every((value, i) => value === b[i]);
  function keep() { past.push(step()); if (past.length > LIMIT) past.shift(); future = []; }
  function put(next, kind) { hidden = Uint8Array.from(next); redraw(); if (kind) changed(kind); }
  function set(index, value) { if (hidden[index] !== value) { hidden[index] = value; redraw(); changed('edit'); } }
  function travel(from, to) {
    if (!from.length) return false;
    to.push(step());
    const there = from.pop();
    put(there.hidden);
    setRule(there.rule);
    changed('end');
    return true;
  }
  function edit(next) { if (picture && !same(next, hidden)) { keep(); put(next, 'edit'); } changed('end'); }

  // --- pointer ---------------------------------------------------------------------------------------------
  function at(event) {
    const box = canvas.getBoundingClientRect();
    const part = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    return part((event.clientY - box.top) / box.height, rows) * columns + part((event.clientX - box.left) / box.width, columns);
  }
  /** Every patch between two: a fast stroke skips cells, so it is filled in. */
  function line(from, to, value) {
    const ax = from % columns, ay = Math.floor(from / columns), dx = (to % columns) - ax, dy = Math.floor(to / columns) - ay;
    const steps = Math.max(Math.abs(dx), Math.abs(dy), 1);
    for (let s = 0; s <= steps; s++) set(Math.round(ay + (dy * s) / steps) * columns + Math.round(ax + (dx * s) / steps), value);
  }
  function rectangle(from, to, value, base) {
    const next = base.slice();
    const [x0, x1] = [from % columns, to % columns].sort((a, b) => a - b);
    const [y0, y1] = [Math.floor(from / columns), Math.floor(to / columns)].sort((a, b) => a - b);
    for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) next[y * columns + x] = value;
    if (!same(next, hidden)) put(next, 'edit');
  }
  function finish() {
    if (!stroke) return;
    // The step is kept only now, so that a stroke which changed nothing leaves no empty undo.
    if (!same(stroke.before.hidden, hidden)) { past.push(stroke.before); if (past.length > LIMIT) past.shift(); future = []; }
    stroke = null;
    redraw();
    changed('end');
  }
  canvas.addEventListener('pointerdown', (event) => {
    if (!picture || event.button || stroke || !event.isPrimary) return; // before the first picture the mask may still be on its way
    canvas.setPointerCapture(event.pointerId);
    keys = false; hover = -1; cursor = at(event);
    stroke = { state: 1 - hidden[cursor], first: cursor, last: cursor, box: event.shiftKey, before: step() };
    set(cursor, stroke.state);
  });
  canvas.addEventListener('pointermove', (event) => {
    const index = at(event);
    if (!stroke || stroke.keyboard) { if (event.pointerType === 'mouse' && hover !== index) { hover = index; redraw(); } return; }
    if (index === stroke.last) return;
    if (stroke.box) rectangle(stroke.first, index, stroke.state, stroke.before.hidden); else line(stroke.last, index, stroke.state);
    cursor = stroke.last = index;
  });
  canvas.addEventListener('pointerup', finish);
  canvas.addEventListener('pointercancel', finish);
  canvas.addEventListener('pointerleave', () => { hover = -1; redraw(); });

  // --- keys ------------------------------------------------------------------------------------------------
  function move(event) {
    const x = cursor % columns, y = Math.floor(cursor / columns);
    const to = { ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1], Home: [0, y], End: [columns - 1, y] }[event.key];
    if (!to) return false;
    const next = Math.min(rows - 1, Math.max(0, to[1])) * columns + Math.min(columns - 1, Math.max(0, to[0]));
    if (event.shiftKey && !stroke) stroke = { state: hidden[cursor], keyboard: true, before: step() };
    if (event.shiftKey && stroke.keyboard) line(cursor, next, stroke.state);
    cursor = next;
    changed('move');
    return true;
  }
  canvas.addEventListener('keydown', (event) => {
    if (!picture || event.ctrlKey || event.metaKey || event.altKey) return; // undo and redo are the page's
    if (event.key === ' ' || event.key === 'Enter') { if (!stroke && !event.repeat) { keep(); set(cursor, 1 - hidden[cursor]); changed('end'); } }
    else if (!move(event)) return; // Tab must pass through
    keys = true; event.preventDefault(); redraw();
  });
  canvas.addEventListener('keyup', (event) => { if (event.key === 'Shift' && stroke && stroke.keyboard) finish(); });
  canvas.addEventListener('focus', () => { keys = canvas.matches(':focus-visible'); redraw(); });
  canvas.addEventListener('blur', () => { if (stroke && stroke.keyboard) finish(); redraw(); });

  return {
    redraw, keep,
    get total() { return total; },
    get hidden() { return hidden; },
    get cursor() { return cursor; },
    get count() { return hidden.reduce((sum, value) => sum + value, 0); },
    get indices() { return Array.from(hidden.keys()).filter((i) => hidden[i]); },
    get busy() { return stroke !== null; },
    get canUndo() { return past.length > 0; },
    get canRedo() { return future.length > 0; },
    /** Puts the mask the server drew; no step of the history. */
    take(indices) { const next = new Uint8Array(total); for (const i of indices) next[i] = 1; put(next); },
    edit, undo: () => travel(past, future), redo: () => travel(future, past),
    picture(image) { picture = image; redraw(); },
    /** Another number of patches: the mask is carried over by place, the history is not. */
    reshape(nextRows, nextColumns) {
      const next = new Uint8Array(nextRows * nextColumns);
      for (let i = 0; i < next.length; i++) {
        const y = Math.floor(((Math.floor(i / nextColumns) + 0.5) * rows) / nextRows), x = Math.floor((((i % nextColumns) + 0.5) * columns) / nextColumns);
        next[i] = hidden[y * columns + x];
      }
      rows = nextRows; columns = nextColumns; total = rows * columns;
      hidden = next; past = []; future = []; cursor = 0; hover = -1; stroke = null;
      redraw();
    },
    /** Whole device pixels a patch, so that lines are sharp. */
    fit(cell) {
      const pixels = Math.max(1, Math.round(cell * devicePixelRatio));
      if (canvas.width !== pixels * columns || canvas.height !== pixels * rows) { canvas.width = pixels * columns; canvas.height = pixels * rows; draw(); }
    },
  };
}
