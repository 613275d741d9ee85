// How the loaded model learned: its curves, and the fixed photos as earlier states of it drew them.

/**
 * @param element The section. words: the page's.
 * @return {of(model), speak(), redraw()}: of fetches a model's record and, while it still grows, fetches it again.
 *         A run that goes on elsewhere (UNMASK_RUN) has a record of its own, offered beside it.
 */
function createTraining(element, words) {
  const $ = (selector) => element.querySelector(selector);
  const SIDE = 224, AGAIN_MS = 15000, PATIENCE = 4; // this many fetches without news, and the run is taken for finished
  let name = '', record = null, at = -1, sheet = null, round = 0, timer = 0, unchanged = 0;
  const sheets = new Map(); // address -> picture
  let model = '', names = [], failed = false; // whose record is wanted; of which there are any; whether nobody answered
  const get = async (path) => {
    const response = await fetch(rootUrl(path));
    if (!response.ok) throw new Error(String(response.status));
    return response.json();
  };

  async function of(wanted) {
    if (model === wanted) return;
    model = wanted;
    const info = await get('v1/info').catch(() => null);
    if (model !== wanted) return;
    if (!info) { fail(); return; }
    names = info.trainings;
    show(model);
  }
  async function show(wanted, anew = false) {
    clearTimeout(timer);
    const mine = ++round;
    if (!anew) { name = wanted; record = null; at = -1; sheet = null; unchanged = 0; offer(); }
    const known = names.includes(name); // of others there is nothing to ask for
    const found = known ? await get(`v1/models/${encodeURIComponent(name)}/training`).catch(() => (anew ? record : undefined)) : null;
    if (mine !== round) return;
    if (found === undefined) { fail(); return; }
    failed = false;
    const grown = !record || !found || ['points', 'validation', 'pictures'].some((list) => found[list].length !== record[list].length);
    const last = record && at === record.pictures.length - 1;
    unchanged = grown ? 0 : unchanged + 1;
    record = found;
    if (grown || !record) { paint(); if (record && record.pictures.length && (at < 0 || last)) pick(record.pictures.length - 1); }
    if (record && unchanged < PATIENCE) timer = setTimeout(again, AGAIN_MS);
  }
  /** Nobody answered: not the same as no record, and asked again with the next change of Explore or by the button. */
  function fail() { model = ''; record = null; failed = true; paint(); }
  /** Other records than the model's own: a button each. */
  function offer() {
    const all = [model, ...names.filter((one) => one !== model)], box = $('.um-training-names');
    box.hidden = all.length < 2;
    box.replaceChildren(...all.map((one) => {
      const button = document.createElement('button');
      button.type = 'button'; button.className = 'um-button um-chip'; button.textContent = one;
      button.setAttribute('aria-pressed', String(one === name));
      button.addEventListener('click', () => { show(one); [...box.children][all.indexOf(one)].focus(); });
      return button;
    }));
  }
  function again() { if (element.isConnected && element.checkVisibility()) show(name, true); else timer = setTimeout(again, AGAIN_MS); }

  /** The first point after which the loss is another one, since another target was predicted; 0 for none. */
  const turn = (points) => Math.max(points.findIndex((p) => p.target !== points[0].target), 0);
  const has = (list) => Boolean(record && record[list] && record[list].length);
  function paint() {
    const points = has('points') ? record.points : [], last = points[points.length - 1], turned = turn(points);
    $('.um-training-again').hidden = !failed;
    const lead = failed ? words('learn.training_failed') : !has('points') && !has('pictures') ? words('learn.no_record')
      : turned ? words('learn.training_turned', { s: number(last.step), n: number(last.samples), a: number(points[0].loss, 2), b: number(points[turned - 1].loss, 2), t: number(points[turned - 1].step), c: number(points[turned].loss, 2), d: number(last.loss, 2) })
      : last ? words('learn.training_lead', { s: number(last.step), n: number(last.samples), a: number(points[0].loss, 2), b: number(last.loss, 2) })
        : words('learn.training_pictures_only');
    $('.um-training-lead').textContent = sentences([lead, last && heldOut()]);
    $('.um-key-val').parentElement.hidden = !has('validation');
    $('.um-curve').hidden = points.length < 2;
    $('.um-training-pictures').hidden = !has('pictures');
    if (has('pictures')) { $('.um-training-step').max = String(record.pictures.length - 1); caption(); }
    redraw();
  }

  /** How the loss on photos that were held out went, in words; '' where it was not measured twice. */
  function heldOut() {
    const validation = has('validation') ? record.validation : [], [first, last] = [validation[0], validation[validation.length - 1]];
    return first === last ? '' : words('learn.training_held_out', { a: number(first.val_loss, 2), s: number(first.step), b: number(last.val_loss, 2), t: number(last.step) });
  }

  // --- pictures ----------------------------------------------------------------------------------------------------
  async function pick(index) {
    at = index;
    $('.um-training-step').value = String(index);
    caption(); redraw();
    const { url } = record.pictures[index], address = new URL(url, location).href;
    if (!sheets.has(address)) {
      const image = await decoded(address).catch(() => null);
      if (image) sheets.set(address, image);
    }
    if (at === index && sheets.has(address)) { sheet = sheets.get(address); photos(); }
  }
  /** The loss nearest to a step; before the first there is none. */
  const pointAt = (step) => (step && has('points') ? record.points.reduce((a, b) => (Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a)) : null);
  function caption() {
    if (!has('pictures') || at < 0) return;
    const { step, samples } = record.pictures[at], point = pointAt(step);
    const text = words(point ? 'learn.training_now' : 'learn.training_now_plain', { s: number(step), n: number(samples), l: point ? number(point.loss, 2) : '' });
    $('.um-training-now').textContent = text;
    const range = $('.um-training-step');
    range.setAttribute('aria-valuetext', text);
    range.style.setProperty('--share', (record.pictures.length > 1 ? (at / (record.pictures.length - 1)) * 100 : 100) + '%');
  }
  /** A column a photo: what the model saw, what it makes of it at this step, what was there. */
  function photos() {
    const { naturalWidth: w, naturalHeight: h } = sheet, box = $('.um-training-sheet');
    const tile = w / 3, count = Math.round(h / tile), half = SIDE / 2 - 4; // a tile is as large as the model's pictures
    while (box.children.length > count) box.lastElementChild.remove();
    while (box.children.length < count) {
      const canvas = document.createElement('canvas');
      canvas.setAttribute('role', 'img');
      box.append(canvas);
    }
    [...box.children].forEach((canvas, row) => {
      const cx = canvas.getContext('2d');
      // Within the middles of a tile's outermost pixels: what lies beside it would be mixed in.
      const put = (column, x, y, side) => cx.drawImage(sheet, column * tile + 0.5, row * tile + 0.5, tile - 1, tile - 1, x, y, side, side);
      canvas.width = SIDE; canvas.height = SIDE + 8 + half;
      // The middle column, large; the other two side by side beneath it.
      put(1, 0, 0, SIDE); put(0, 0, SIDE + 8, half); put(2, SIDE - half, SIDE + 8, half);
      const photo = record.photos[row]; // a sample of the page has a title in its language
      canvas.setAttribute('aria-label', words('learn.training_alt', { i: photo ? words.title({ sample: photo, title: photo }) : row + 1, s: number(record.pictures[at].step) }));
    });
  }
  $('.um-training-step').addEventListener('input', (event) => pick(Number(event.target.value)));

  // --- curves ------------------------------------------------------------------------------------------------------
  function redraw() {
    const canvas = $('.um-curve-canvas'), { clientWidth: w, clientHeight: h } = canvas;
    if (!has('points') || record.points.length < 2 || !w) return;
    const { points, validation } = record, cx = canvas.getContext('2d');
    const colour = (token) => getComputedStyle(canvas).getPropertyValue(token).trim();
    canvas.width = Math.round(w * devicePixelRatio); canvas.height = Math.round(h * devicePixelRatio);
    cx.scale(devicePixelRatio, devicePixelRatio);
    cx.font = `13px ${getComputedStyle(canvas).fontFamily}`;
    const left = 44, right = w - 12, top = 10, bottom = h - 34;
    const steps = [...points, ...validation].map((p) => p.step), losses = [...points.map((p) => p.loss), ...validation.map((p) => p.val_loss)];
    const first = Math.min(...steps), end = Math.max(...steps), highest = Math.max(...losses), lowest = Math.min(...losses), fastest = Math.max(...points.map((p) => p.lr)) || 1;
    const floor = Math.floor(lowest * 5) / 5, roof = Math.ceil(highest * 5) / 5 || 1;
    const x = (step) => left + ((step - first) / (end - first || 1)) * (right - left);
    const y = (share) => bottom - share * (bottom - top);
    cx.strokeStyle = colour('--um-hairline'); cx.fillStyle = colour('--um-muted'); cx.lineWidth = 1;
    cx.textAlign = 'right'; cx.textBaseline = 'middle';
    for (let k = 0; k <= 4; k++) {
      cx.beginPath(); cx.moveTo(left, y(k / 4)); cx.lineTo(right, y(k / 4)); cx.stroke();
      cx.fillText(number(floor + ((roof - floor) * k) / 4, 2), left - 8, y(k / 4));
    }
    cx.textBaseline = 'top';
    for (let k = 0; k <= 2; k++) {
      cx.textAlign = ['left', 'center', 'right'][k];
      const step = Math.round(first + ((end - first) * k) / 2);
      cx.fillText(words('learn.curve_step', { s: number(step) }), x(step), bottom + 10);
    }
    const height = (loss) => y((loss - floor) / (roof - floor));
    const dot = (token, step, loss, radius) => { cx.fillStyle = colour(token); cx.beginPath(); cx.arc(x(step), height(loss), radius, 0, 7); cx.fill(); };
    const stroke = (token, width, list, value, dash = []) => {
      cx.strokeStyle = colour(token); cx.lineWidth = width; cx.lineJoin = 'round'; cx.setLineDash(dash);
      cx.beginPath(); list.forEach((p, i) => (i && p.target !== list[i - 1].target ? cx.moveTo(x(p.step), value(p)) : cx.lineTo(x(p.step), value(p)))); cx.stroke(); cx.setLineDash([]);
    };
    stroke('--um-muted', 1.5, points, (p) => y(p.lr / fastest), [5, 4]);
    stroke('--um-accent', 2, points, (p) => height(p.loss));
    stroke('--um-good', 2, validation, (p) => height(p.val_loss));
    for (const p of validation) dot('--um-good', p.step, p.val_loss, 3); // measured seldom, and told from the other line without its colour
    if (has('pictures') && at >= 0) {
      const { step } = record.pictures[at], point = pointAt(step), px = x(Math.min(end, Math.max(first, step)));
      cx.strokeStyle = colour('--um-ink'); cx.lineWidth = 1; cx.beginPath(); cx.moveTo(px, top); cx.lineTo(px, bottom); cx.stroke();
      if (point) dot('--um-accent', step, point.loss, 5);
    }
    const alt = words('learn.curve_alt', { a: number(points[0].loss, 2), b: number(points[points.length - 1].loss, 2), s: number(points[points.length - 1].step) });
    canvas.setAttribute('aria-label', [alt, heldOut()].filter(Boolean).join('. '));
  }
  new ResizeObserver(redraw).observe($('.um-curve-canvas'));
  return { of, redraw, speak() { if (name || failed) paint(); if (sheet) photos(); } };
}
