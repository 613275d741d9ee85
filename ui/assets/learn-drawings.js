// The pictures of the seven steps. Every one is made of the visitor's own picture and what the model made of it.

/**
 * What the drawings need, computed once a picture.
 * @param original, result  Pictures of the same size.
 * @param hidden            Patches that were hidden; rows, columns: the grid.
 */
function createScene({ original, result, hidden, rows, columns }) {
  /** The picture at `side` pixels a patch, to read colours from. */
  const small = (image, side) => {
    const sheet = new OffscreenCanvas(columns * side, rows * side).getContext('2d', { willReadFrequently: true });
    sheet.imageSmoothingQuality = 'high';
    sheet.drawImage(image, 0, 0, columns * side, rows * side);
    return sheet.getImageData(0, 0, columns * side, rows * side).data;
  };
  const seen = small(original, 4), made = small(result, 4), isHidden = new Uint8Array(rows * columns);
  for (const i of hidden) isHidden[i] = 1;
  /** Four upright bars for the token of a patch: the mean colours of its four columns, told apart a little. */
  function bars(i, data) {
    const x = (i % columns) * 4, y = Math.floor(i / columns) * 4, width = columns * 4;
    return [0, 1, 2, 3].map((column) => {
      const sum = [0, 0, 0];
      for (let row = 0; row < 4; row++) for (let c = 0; c < 3; c++) sum[c] += data[((y + row) * width + x + column) * 4 + c] / 4;
      const shade = [0.86, 1.12, 0.94, 1.06][column];
      return `rgb(${sum.map((value) => Math.min(255, Math.round(value * shade))).join(' ')})`;
    });
  }
  return {
    original, result, rows, columns, isHidden,
    visible: [...isHidden.keys()].filter((i) => !isHidden[i]),
    token: (i) => bars(i, seen),
    painted: (i) => bars(i, made),
  };
}

/** Draws step `name` of a scene on a canvas whose longer side is `size` css pixels. */
function drawStep(canvas, name, scene, size) {
  const { rows, columns, isHidden, visible } = scene;
  const cell = Math.max(4, Math.round((size * devicePixelRatio) / Math.max(rows, columns)));
  const [w, h] = [cell * columns, cell * rows];
  canvas.width = w; canvas.height = h;
  const cx = canvas.getContext('2d');
  const colour = (token) => getComputedStyle(canvas).getPropertyValue(token).trim();
  const paper = colour('--um-surface'), dark = colour('--um-hidden'), line = colour('--um-hidden-line'), accent = colour('--um-accent'), ink = colour('--um-ink');
  cx.imageSmoothingQuality = 'high';
  cx.fillStyle = paper; cx.fillRect(0, 0, w, h);

  const gap = Math.max(1, Math.round(cell / 12));
  const place = (i) => [(i % columns) * cell, Math.floor(i / columns) * cell, cell];
  /** Visible tokens pushed together: as many columns as make a square. */
  const across = Math.ceil(Math.sqrt((visible.length + 1) * (columns / rows)));
  const down = Math.ceil((visible.length + 1) / across), step = Math.min(w / across, h / down);
  const packed = (n) => [(w - step * across) / 2 + (n % across) * step, (h - step * down) / 2 + Math.floor(n / across) * step, step];
  const inner = ([x, y, side], rim = Math.max(1, side / 12)) => [x + rim, y + rim, side - 2 * rim, side - 2 * rim];

  function patch(i, [x, y, side, tall = side]) {
    const { naturalWidth: iw, naturalHeight: ih } = scene.original;
    cx.drawImage(scene.original, (i % columns) * (iw / columns), Math.floor(i / columns) * (ih / rows), iw / columns, ih / rows, x, y, side, tall);
  }
  function token(stripes, [x, y, side, tall]) {
    stripes.forEach((fill, k) => { cx.fillStyle = fill; cx.fillRect(x + (side * k) / 4, y, side / 4 + 0.5, tall); });
  }
  function classToken([x, y, side, tall]) {
    cx.fillStyle = accent; cx.fillRect(x, y, side, tall);
  }
  function maskToken([x, y, side, tall]) {
    cx.fillStyle = dark; cx.fillRect(x, y, side, tall);
    cx.fillStyle = line; cx.beginPath(); cx.arc(x + side / 2, y + tall / 2, side / 6, 0, 7); cx.fill();
  }
  /** From one token to all others: attention. */
  function web(from, to) {
    const middle = ([x, y, side]) => [x + side / 2, y + side / 2];
    cx.strokeStyle = ink; cx.globalAlpha = 0.3; cx.lineWidth = Math.max(1, cell / 20);
    cx.beginPath();
    for (const box of to) { cx.moveTo(...middle(from)); cx.lineTo(...middle(box)); }
    cx.stroke();
    cx.globalAlpha = 1; cx.lineWidth = Math.max(2, cell / 8); cx.strokeStyle = ink;
    cx.strokeRect(...inner(from, -cx.lineWidth / 4));
  }
  const every = [...isHidden.keys()];
  const drawings = {
    patches() { for (const i of every) { const [x, y] = place(i); patch(i, [x, y, cell - gap]); } },
    visible() {
      for (const i of every) if (isHidden[i]) { const [x, y] = place(i); cx.fillStyle = line; cx.fillRect(x, y, cell, cell); cx.fillStyle = dark; cx.fillRect(x, y, cell - 1, cell - 1); } else patch(i, place(i));
    },
    tokens() {
      classToken(inner(packed(0)));
      visible.forEach((i, n) => {
        const [x, y, side, tall] = inner(packed(n + 1));
        patch(i, [x, y, side, tall / 2]); token(scene.token(i), [x, y + tall / 2, side, tall / 2]);
      });
    },
    encoder() {
      classToken(inner(packed(0)));
      visible.forEach((i, n) => token(scene.token(i), inner(packed(n + 1))));
      web(packed(Math.floor(visible.length / 2)), visible.map((_, n) => packed(n + 1)));
    },
    mask_tokens() { for (const i of every) if (isHidden[i]) maskToken(inner(place(i))); else token(scene.token(i), inner(place(i))); },
    decoder() {
      for (const i of every) token(isHidden[i] ? scene.painted(i) : scene.token(i), inner(place(i)));
      const middle = every.filter((i) => isHidden[i]).sort((a, b) => far(a) - far(b))[0];
      if (middle !== undefined) web(place(middle), every.filter((i) => i !== middle).map(place));
    },
    pixels() {
      cx.drawImage(scene.result, 0, 0, w, h);
      for (const i of visible) patch(i, place(i));
    },
  };
  const far = (i) => Math.abs((i % columns) - columns / 2) + Math.abs(Math.floor(i / columns) - rows / 2);
  drawings[name]();
}
