// The How it works tab: the request that Explore shows, opened up. Runs as the body of a function with `element` and `props`.
const words = wordsOf(props.words);
const $ = (selector) => element.querySelector(selector);
const large = (value) => new Intl.NumberFormat(LANGUAGES[language()], { notation: 'compact', compactDisplay: 'long', maximumFractionDigits: value < 1e6 ? 0 : 1 }).format(value);

// Name, title, fact, what a visitor reads on opening it, shape before, shape after; in the order of the network.
const STEPS = [
  ['patches', 'learn.patches', 'learn.patches_fact', 'learn.patches_text', 'pixels', 'all'],
  ['visible', 'learn.visible', 'learn.visible_fact', 'learn.visible_text', 'all', 'seen'],
  ['tokens', 'learn.tokens', 'learn.tokens_fact', 'learn.tokens_text', 'seen', 'wide'],
  ['encoder', 'learn.encoder', 'learn.encoder_fact', 'learn.encoder_text', 'wide', 'wide'],
  ['mask_tokens', 'learn.mask_tokens', 'learn.mask_tokens_fact', 'learn.mask_tokens_text', 'wide', 'narrow'],
  ['decoder', 'learn.decoder', 'learn.decoder_fact', 'learn.decoder_text', 'narrow', 'narrow'],
  ['pixels', 'learn.pixels', 'learn.pixels_fact', 'learn.pixels_text', 'narrow', 'told'],
];
const TOKENS = ['tokens', 'encoder', 'mask_tokens', 'decoder']; // steps whose drawing stands for lists of numbers

let view = null;   // {answer, images, scene, model, title}: what is on screen
let asked = {};    // {picture, fields}: what it was made for
let selected = 'encoder';
let running = null;
const training = createTraining($('.um-training'), words);

// --- asking the server ---------------------------------------------------------------------------------------------
/** One reconstruction of the picture with some fields changed. */
function reconstruct({ picture, fields }, change, panels, signal) {
  const queue = (line) => { const text = queueWords(words, line); if (text && told[0] === 'learn.working') $('.um-learn-say').textContent = words('status.slow_queue', { line: text }); };
  const waiting = (state, s) => status('status.' + state, false, { s });
  return askFigure({ ...fields, ...change, panels }, picture.blob, { signal, queue, waiting, tries: Infinity }); // after an outage it comes by itself
}
/** Without the crop: what is sent is the crop already. */
function single({ crop, view, ...fields }) {
  return view && view !== 'normalised' ? { ...fields, view } : fields; // contrast alone is no picture to measure against the original
}

async function follow(state) {
  const model = store.modelShown();
  training.of(model.name);
  if (!state.picture || !state.fields.strategy) { status('learn.loading'); return; }
  if (asked.picture === state.picture && asked.fields === JSON.stringify(state.fields)) return;
  asked = { picture: state.picture, fields: JSON.stringify(state.fields) };
  if (running) running.abort();
  const mine = (running = new AbortController());
  const request = { picture: state.picture, fields: single(state.fields) }, slow = setTimeout(() => status('learn.working'), 300);
  try {
    const { answer, images } = await reconstruct(request, {}, 'original,reconstruction', mine.signal);
    const [rows, columns] = answer.grid;
    const scene = createScene({ original: images.original, result: images.reconstruction, hidden: answer.hidden, rows, columns });
    view = { answer, images, scene, model, picture: state.picture, errors: patchErrors(images.original, images.reconstruction, rows, columns), positions: undefined, views: null };
    clearTimeout(slow); status(''); paint(); arrive();
    await answerQuestions(request, mine.signal);
  } catch {
    if (!mine.signal.aborted) { asked = {}; status('learn.failed', true); }
  } finally { clearTimeout(slow); }
}
let arrived = false;
/** The address of a section leads to it, once: what stands above it is there now. */
function arrive() {
  const section = !arrived && document.getElementById(location.hash.slice(1));
  arrived = true;
  if (section && element.contains(section)) section.scrollIntoView();
}
/** The extra pictures; a question whose picture fails stays without it. */
async function answerQuestions(request, signal) {
  const mine = view, drop = () => null;
  mine.positions = await reconstruct(request, { positions: 'hidden_only' }, 'reconstruction', signal).catch(drop);
  if (isNormalised(mine.model)) {
    mine.views = [];
    for (const name of mine.model.views) mine.views.push([name, await reconstruct(request, { view: name }, 'pasted', signal).catch(drop)]);
  }
  if (!signal.aborted && view === mine) { status(''); questions(); }
}
let told = ['', false, {}];
function status(key, again = false, values = {}) {
  $('.um-learn-say').ariaLive = key && key === told[0] ? 'off' : null; // a countdown is spoken once
  told = [key, again, values];
  $('.um-learn-say').textContent = key && words(key, values);
  $('.um-learn-again').hidden = !again;
}
$('.um-learn-again').addEventListener('click', () => follow(store.state));
$('.um-training-again').addEventListener('click', () => training.of(store.modelShown().name));

const isNormalised = (model) => model.target.startsWith('norm_pixel');
const mean = (list) => (list.length ? list.reduce((sum, value) => sum + value, 0) / list.length : 0);

// --- the seven steps -----------------------------------------------------------------------------------------------
const detail = make('div', 'um-step-detail');
detail.id = 'um-step-detail';
const cards = STEPS.map(([name]) => {
  const card = make('button', 'um-step'), text = make('span', 'um-step-text'), canvas = make('canvas', 'um-step-picture');
  card.type = 'button'; card.dataset.step = name;
  canvas.setAttribute('aria-hidden', 'true');
  text.append(make('span', 'um-step-title'), make('span', 'um-step-fact'), make('span', 'um-share-bar'), make('span', 'um-step-share'));
  card.append(canvas, text);
  card.addEventListener('click', () => { selected = name; steps(); });
  $('.um-steps').append(card);
  return card;
});

function facts() {
  const { scene, model } = view, n = scene.rows * scene.columns, v = scene.visible.length, P = model.patch_size, h = model.channels, A = h * P * P;
  const cost = stageCosts(model, n, v), told = cost.out;
  const shape = (letters, numbers) => `[${letters.join(', ')}] = ${numbers.join(' × ')}`;
  const shapes = {
    pixels: shape(['B', String(h), 'H', 'W'], [1, h, scene.rows * P, scene.columns * P]), all: shape(['B', 'L', `${h}P²`], [1, n, A]), seen: shape(['B', 'K', `${h}P²`], [1, v, A]),
    told: shape(['B', 'L', told > A ? `${h}P²+2` : `${h}P²`], [1, n, told]),
    wide: shape(['B', 'K+1', 'D'], [1, v + 1, model.width]), narrow: shape(['B', 'L+1', 'd'], [1, n + 1, model.decoder_width]),
  };
  const values = {
    n: number(n), v: number(v), k: number(n - v), p: P, h, a: number(A), o: number(told), r: scene.rows, c: scene.columns, x: number((1 - v / n) * 100), f: number(cost.everywhere / cost.work),
    D: number(model.width), d: number(model.decoder_width), depth: number(model.depth), shallow: number(model.decoder_depth), m: large(cost.work),
  };
  return { cost, shapes, values };
}
function steps() {
  if (!view) return;
  const { cost, shapes, values } = facts();
  STEPS.forEach(([name, title, fact], i) => {
    const card = cards[i], { share } = cost.stages[name];
    card.querySelector('.um-step-title').textContent = `${i + 1} ${words(title, values)}`;
    card.querySelector('.um-step-fact').textContent = words(name === 'pixels' && values.o !== values.a ? 'learn.pixels_fact_stats' : fact, values);
    card.querySelector('.um-share-bar').style.setProperty('--share', `${share * 100}%`);
    card.querySelector('.um-step-share').textContent = share > 0 && share < 0.005 ? words('learn.share_small') : words('learn.share', { x: number(share * 100, 0) });
    card.setAttribute('aria-pressed', String(name === selected));
    if (name === selected) { card.setAttribute('aria-describedby', detail.id); card.after(detail); } else card.removeAttribute('aria-describedby');
    drawStep(card.querySelector('canvas'), name, view.scene, 176);
  });
  open(cost, shapes, values);
  words.rich($('.um-learn-sum'), view.model.mask_tokens === 'encoder' ? 'learn.sum_inside' : 'learn.sum', values);
}
/** The chosen step, large: what happens there, and the true sizes. */
function open(cost, shapes, values) {
  const [name, title, , text, before, after] = STEPS.find(([step]) => step === selected), { work, learned, share } = cost.stages[name];
  const canvas = make('canvas', 'um-step-large'), side = make('div', 'um-step-words'), list = make('dl', 'um-sizes');
  canvas.setAttribute('aria-hidden', 'true');
  const normalised = name === 'pixels' && isNormalised(view.model), beside = normalised && values.o !== values.a;
  side.append(make('h2', '', words(title, values)), make('p', 'um-prose', words(beside ? 'learn.pixels_text_stats' : normalised ? 'learn.pixels_text_normalised' : text, values)));
  if (TOKENS.includes(name)) side.append(make('p', 'um-hint', words('learn.stripes')));
  const rows = [['learn.before', shapes[before]], ['learn.after', shapes[after]], ['learn.learned', learned ? number(learned) : words('learn.none')], ['learn.work', work ? words('learn.work_share', { m: large(work), x: number(share * 100) }) : words('learn.none')]];
  for (const [key, value] of rows) list.append(make('dt', '', words(key)), make('dd', '', value));
  side.append(list, make('p', 'um-hint', words('learn.letters')));
  detail.replaceChildren(canvas, side);
  drawStep(canvas, name, view.scene, 352);
}

// --- what the loss sees ----------------------------------------------------------------------------------------------
function show(canvas, image) { canvas.width = image.naturalWidth; canvas.height = image.naturalHeight; canvas.getContext('2d').drawImage(image, 0, 0); }
function loss() {
  const { images, scene, errors, model } = view, everywhere = model.recipe?.loss_on === 'all', hidden = [...scene.isHidden.keys()].filter((i) => scene.isHidden[i]);
  const over = (patches) => ofView(words, percent(mean(patches.map((i) => errors[i]))), view.answer);
  const values = { h: over(hidden), v: over(scene.visible), title: words.title(view.picture) };
  $('.um-loss-lead').textContent = words(everywhere ? 'learn.loss_lead_all' : 'learn.loss_lead');
  $('.um-loss-map-fact').textContent = words(everywhere ? 'learn.loss_map_fact_all' : 'learn.loss_map_fact');
  show($('.um-loss-raw'), images.reconstruction);
  words.rich($('.um-loss-raw-fact'), 'learn.loss_raw_fact', values);
  const map = $('.um-loss-map'), cx = map.getContext('2d'), cell = 24;
  map.width = scene.columns * cell; map.height = scene.rows * cell;
  const colour = (token) => getComputedStyle(map).getPropertyValue(token).trim();
  const counted = scene.isHidden.map((isHidden) => everywhere || isHidden), worst = Math.max(...errors.filter((_, i) => counted[i]), 1);
  counted.forEach((counts, i) => {
    const x = (i % scene.columns) * cell, y = Math.floor(i / scene.columns) * cell;
    cx.fillStyle = counts ? '#fff' : colour('--um-surface'); cx.fillRect(x, y, cell, cell);
    if (counts) { cx.globalAlpha = errors[i] / worst; cx.fillStyle = '#b3261e'; cx.fillRect(x, y, cell, cell); cx.globalAlpha = 1; return; }
    cx.strokeStyle = colour('--um-hidden-line'); cx.lineWidth = 1.5;
    cx.beginPath(); cx.moveTo(x + 7, y + 7); cx.lineTo(x + cell - 7, y + cell - 7); cx.moveTo(x + cell - 7, y + 7); cx.lineTo(x + 7, y + cell - 7); cx.stroke();
  });
  drawStep($('.um-loss-pasted'), 'pixels', scene, 352);
  $('.um-loss-raw').setAttribute('aria-label', words('learn.loss_raw_alt', values));
  map.setAttribute('aria-label', words(everywhere ? 'learn.loss_map_alt_all' : 'learn.loss_map_alt', values));
  $('.um-loss-pasted').setAttribute('aria-label', words('learn.loss_pasted_alt', values));
}

// --- the two questions -------------------------------------------------------------------------------------------------
function questions() {
  const { positions, answer, images, model } = view, title = words.title(view.picture);
  const off = (found) => percent(found.answer.metrics.colour_error_percent), error = (found) => words('learn.off_by', { e: errorText(words, found.answer) });
  $('.um-pair-of-tiles').hidden = !positions;
  $('.um-positions-fact').textContent = positions ? words('learn.positions_fact') : positions === null ? words('learn.no_picture') : ''; // not asked yet
  if (positions) {
    show($('.um-positions-both'), images.reconstruction); show($('.um-positions-hidden'), positions.images.reconstruction);
    $('.um-positions-both-fact').textContent = error({ answer }); $('.um-positions-hidden-fact').textContent = error(positions);
    $('.um-positions-both').setAttribute('aria-label', words('learn.positions_both_alt', { title }));
    $('.um-positions-hidden').setAttribute('aria-label', words('learn.positions_hidden_alt', { title }));
  }
  const normalised = isNormalised(model);
  $('.um-normalised-answer').textContent = words(normalised ? 'learn.normalised_answer' : 'learn.normalised_answer_pixels');
  const views = { estimated: 'learn.view_estimated', predicted: 'learn.view_predicted', normalised: 'learn.view_normalised', oracle: 'learn.view_oracle' };
  const tiles = normalised
    ? (view.views || []).filter(([, found]) => found).map(([name, found]) => [found.images.pasted, words(views[name] || 'learn.normalised_other', { name }), words('learn.off_by', { e: off(found) })])
    : Object.entries(parts()).map(([key, canvas]) => [canvas, words(key), '']);
  $('.um-normalised-tiles').replaceChildren(...tiles.map(([picture, name, fact]) => {
    const figure = make('figure', 'um-tile'), caption = make('figcaption', ''), canvas = picture instanceof Image ? make('canvas', '') : picture;
    if (picture instanceof Image) show(canvas, picture);
    canvas.setAttribute('role', 'img'); canvas.setAttribute('aria-label', `${title}: ${name}`);
    caption.append(make('b', '', name), make('span', '', fact));
    figure.append(canvas, caption);
    return figure;
  }));
}
/** The visitor's picture taken apart as a normalised target does it: mean colour and contrast of each patch, and the rest. */
function parts() {
  const { scene, images } = view, { naturalWidth: w, naturalHeight: h } = images.original, side = w / scene.columns;
  const sheet = new OffscreenCanvas(w, h).getContext('2d', { willReadFrequently: true });
  sheet.drawImage(images.original, 0, 0);
  const [means, rest] = [0, 1].map(() => new ImageData(w, h));
  for (let row = 0; row < scene.rows; row++) for (let column = 0; column < scene.columns; column++) {
    const { data } = sheet.getImageData(column * side, row * side, side, side), count = side * side * 3;
    let sum = 0, squares = 0;
    for (let i = 0; i < data.length; i++) if (i % 4 !== 3) { sum += data[i]; squares += data[i] ** 2; }
    const middle = sum / count, spread = Math.sqrt(Math.max(1e-3, squares / count - middle ** 2));
    for (let i = 0; i < data.length; i++) {
      const at = ((row * side + Math.floor(i / 4 / side)) * w + column * side + (Math.floor(i / 4) % side)) * 4 + (i % 4), alpha = i % 4 === 3;
      means.data[at] = alpha ? 255 : middle;
      rest.data[at] = alpha ? 255 : 128 + (48 * (data[i] - middle)) / spread;
    }
  }
  const canvas = (data) => { const node = make('canvas', ''); node.width = w; node.height = h; node.getContext('2d').putImageData(data, 0, 0); return node; };
  const whole = make('canvas', '');
  show(whole, images.original);
  return { 'learn.part_pixels': whole, 'learn.part_rest': canvas(rest), 'learn.part_means': canvas(means) };
}

// --- start ---------------------------------------------------------------------------------------------------------------
function paint() {
  if (!view) return;
  $('.um-steps').hidden = $('.um-loss').hidden = $('.um-questions').hidden = false;
  steps(); loss(); questions();
}
function speak() { words.fill(element); status(...told); paint(); training.speak(); }
document.addEventListener('unmask:language', speak);
new MutationObserver(() => { paint(); training.redraw(); }).observe(document.body, { attributes: true, attributeFilter: ['class'] });
speak();
store.watch(follow, $('.um-learn'));
