// The Explore tab: wires the grid, the line to the server and the controls.
// Runs as the body of a function with `element` (this tab) and `props` (words, model, samples).
const words = wordsOf(props.words);
const visible = () => element.checkVisibility(); // another tab may be open: what is typed and dropped there is not ours
const $ = (selector) => element.querySelector(selector), all = (selector) => [...element.querySelectorAll(selector)];
const on = (target, type, run) => (typeof target === 'string' ? all(target) : [target]).forEach((node) => node.addEventListener(type, run));
const [rows, columns] = props.model.grid, SIZE = props.model.image_size;
const percent = (value, digits = 1) => words('explore.percent', { x: number(value, digits) });

// --- state -------------------------------------------------------------------------------------------------
const state = {
  strategy: 'random', lastRule: 'random', ratios: { random: 75, block: 50, grid: 75 }, seed: 7,
  known: false,      // whether the grid shows the mask of the rule above, or its answer is still awaited
  edition: 0,        // counts changes of rule and mask: an answer to an older rule must not overwrite a newer drawing
  view: 'result', paste: true, live: true, force: false, holding: false,
  picture: null,     // {blob, image, title}: the model's own crop, sent with every request
  incoming: null,    // {blob, title, sample}: chosen, not yet accepted by the server
  behind: false,     // the server is busy or away: the result may belong to an older mask
};
let shown = null;    // {hidden, images, answer, title, errors}: the result on the right, with the mask it belongs to
let gesture = false; // a slider is being dragged: one step of the history

const say = (text) => { $('.um-say').textContent = text; };
const total = rows * columns;
const promised = (ratio) => total - Math.min(total - 1, Math.max(1, Math.floor((total * (100 - ratio)) / 100)));
const isRule = () => state.strategy !== 'draw';
const countText = (k) => words('explore.count', { k, n: total });

const grid = createGrid($('.um-grid'), {
  rows, columns,
  rule: () => ({ strategy: state.strategy, lastRule: state.lastRule, ratios: { ...state.ratios }, seed: state.seed, known: state.known }),
  setRule(rule) { Object.assign(state, rule, { ratios: { ...rule.ratios } }); touched(); client.pump(); },
  changed(kind) {
    if (kind === 'edit') { drawByHand(); touched(); if (state.behind || !$('.um-note').hidden) renderRight(); client.pump(); }
    if (kind === 'end') say(countText(grid.count)); // once a stroke, not once a patch
    if (kind === 'move') say(cellText());
    controls();
  },
});

function touched() { state.edition++; }
function drawByHand() {
  if (isRule()) { state.strategy = 'draw'; say(words('grid.drawn', { count: countText(grid.count) })); }
  state.known = true;
}
/** Another strategy, ratio or seed: the server draws the mask, its answer sets the grid. */
function setRule(change) {
  if (!gesture) grid.keep();
  Object.assign(state, change);
  if (isRule()) state.lastRule = state.strategy;
  state.known = !isRule();
  touched(); controls(); client.pump();
}
function setRatio(value) {
  const strategy = state.lastRule;
  setRule({ strategy, ratios: { ...state.ratios, [strategy]: Math.min(99, Math.max(1, Math.round(value))) } });
}
const currentRatio = () => (isRule() ? state.ratios[state.strategy] : Math.round((grid.count / total) * 100));

// --- asking the server ----------------------------------------------------------------------------------------
function nextJob() {
  const none = state.known && (grid.count === 0 || grid.count === total);
  const waits = state.known && !state.live && !state.force && !state.incoming && shown;
  if (!(state.incoming || state.picture) || (!state.incoming && (none || waits))) { renderRight(); return null; }
  const body = new FormData(), panels = ['reconstruction'];
  if (state.incoming) panels.push('original');
  if (state.view === 'error') panels.push('error');
  body.append('image', (state.incoming || state.picture).blob, 'picture');
  body.append('panels', panels.join(','));
  const kind = !state.known ? 'rule' : none ? 'picture' : 'mask';
  maskFields(body, kind);
  state.force = false;
  return { body, kind, incoming: state.incoming, edition: state.edition, view: state.view };
}
function maskFields(body, kind) {
  if (kind === 'mask') { body.append('strategy', 'indices'); body.append('indices', JSON.stringify(grid.indices)); return; }
  const strategy = isRule() ? state.strategy : 'random';
  body.append('strategy', strategy);
  body.append('ratio', (state.ratios[strategy] / 100).toFixed(2));
  body.append('seed', String(state.seed));
}
async function accept(job, answer, images) {
  if (job.incoming) await adopt(job.incoming, images.original);
  if (job.kind === 'picture') { renderRight(); return; } // everything or nothing is hidden: only the crop was wanted
  if (job.kind === 'rule') {
    if (state.known) return; // drawn over in the meantime: the newer mask is already on its way
    grid.take(answer.hidden);
    if (job.edition === state.edition) { state.known = true; say(countText(grid.count)); }
  }
  shown = { hidden: answer.hidden, images, answer, title: state.picture.title, errors: null };
  if (job.view === 'error') shown.errors = patchErrors(shown);
  share();
  status(''); controls(); renderRight();
}
/** Tells the other tabs what is on screen now. */
function share() {
  const { answer, hidden, images, title } = shown;
  const drawn = !isRule() && state.known;
  const fields = drawn ? { strategy: 'indices', indices: JSON.stringify(hidden) } : { strategy: state.strategy, ratio: (state.ratios[state.strategy] / 100).toFixed(2), seed: String(state.seed) };
  store.set({
    picture: state.picture, fields, mask: { rows, columns, hidden },
    result: { answer, images, hidden, title, edition: state.edition },
    show: { panel: state.view, paste: state.paste },
  });
}
/** The server has read the picture: from now on its crop is the picture. */
async function adopt(incoming, original) {
  const blob = await fetchable(original);
  const sharp = incoming.sample ? await decoded(URL.createObjectURL(incoming.blob)) : original;
  state.picture = { blob, image: original, title: incoming.title, sample: incoming.sample };
  if (state.incoming === incoming) state.incoming = null;
  grid.picture(sharp);
  all('.um-sample').forEach((node) => node.setAttribute('aria-pressed', String(node.dataset.name === incoming.sample)));
  $('.um-upload').classList.toggle('um-chosen', !incoming.sample);
}
/** The bytes of a data: picture, without a request: the page may only connect to its own server. */
function fetchable(image) {
  const [head, data] = image.src.split(',');
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(';')[0] });
}
const REASONS = {
  'image-unreadable': 'type', 'image-format': 'type', 'image-pixels': 'pixels', 'image-shape': 'shape', 'too-large': 'size',
  'mask-indices': 'mask', 'mask-count': 'mask', 'mask-ratio': 'mask', 'mask-strategy': 'mask', 'mask-seed': 'mask',
};
function refuse(job, code, problem) {
  if (job.incoming && state.incoming === job.incoming) state.incoming = null;
  const slug = String(problem.code || problem.type || '').split(/[/#:]/).pop();
  const key = REASONS[slug] || (code === 413 ? 'size' : code === 415 ? 'type' : 'refused');
  status('status.' + key, { reason: String(problem.detail || problem.title || code) }, 'error');
}
function report(what, seconds) {
  if (what === 'idle') state.behind = false;
  else if (what !== 'bar' && what !== 'slow') { state.behind = true; renderRight(); }
  $('.um-bar').hidden = !(what === 'bar' || what === 'slow');
  $('.um-stop').hidden = what !== 'slow';
  if (what === 'slow') status('status.slow');
  else if (what === 'idle') { if (!$('.um-status').classList.contains('um-error')) status(''); }
  else if (what === 'busy' || what === 'loading') status('status.' + what, { s: seconds });
  else if (what !== 'bar') status('status.' + what, {}, 'error', true);
}
let told = ['']; // what the status line says, to say it again in the other language
function status(key, values = {}, tone = '', again = false) {
  const line = $('.um-status'), text = key && words(key, values);
  told = [key, values, tone, again];
  if ($('.um-status-text').textContent !== text) $('.um-status-text').textContent = text;
  line.classList.toggle('um-error', tone === 'error');
  $('.um-again').hidden = !again;
}
const client = createClient({ url: rootUrl('v1/reconstruct'), next: nextJob, accept, refuse, report });

// --- the right picture -----------------------------------------------------------------------------------------
const result = $('.um-result'), paint = result.getContext('2d');
result.width = result.height = SIZE;
const patch = (i) => [(i % columns) * (SIZE / columns), Math.floor(i / columns) * (SIZE / rows), SIZE / columns, SIZE / rows];

function renderRight() {
  const none = state.known && grid.count === 0, everything = state.known && grid.count === total;
  const stale = Boolean(shown) && (!state.live || state.behind) && state.known && !none && !everything && grid.indices.join() !== shown.hidden.join();
  const slider = state.view === 'slider' && !state.holding && !none && !everything;
  $('.um-badge').hidden = !stale; $('.um-run').hidden = state.live; $('.um-run').disabled = !stale || state.behind;
  $('.um-split').hidden = $('.um-line').hidden = !slider;
  $('.um-legend').hidden = state.view !== 'error';
  $('.um-sentence').hidden = none || everything;
  note(none ? words('status.nothing') : everything ? words('status.all') : '');
  if (!state.picture) return;
  paint.clearRect(0, 0, SIZE, SIZE);
  if (state.holding || none) paint.drawImage(state.picture.image, 0, 0, SIZE, SIZE);
  else if (!everything && shown) slider ? paintSlider() : state.view === 'error' ? paintError() : paintResult();
  result.setAttribute('aria-label', altText(none, everything));
}
function note(text) { $('.um-note').textContent = text; $('.um-note').hidden = !text; }
function paintResult() {
  paint.drawImage(shown.images.reconstruction, 0, 0, SIZE, SIZE);
  if (!state.paste) return;
  const hidden = new Set(shown.hidden);
  for (let i = 0; i < total; i++) if (!hidden.has(i)) paint.drawImage(state.picture.image, ...patch(i), ...patch(i));
}
function paintSlider() {
  paintResult();
  const share = Number($('.um-split').value) / 100;
  if (share > 0) paint.drawImage(state.picture.image, 0, 0, SIZE * share, SIZE, 0, 0, SIZE * share, SIZE);
  $('.um-line').style.left = share * 100 + '%';
  $('.um-split').setAttribute('aria-valuetext', words('view.slider_value', { x: Math.round(share * 100) }));
}
function paintError() {
  if (!shown.images.error) { paintResult(); return; }
  paint.drawImage(shown.images.error, 0, 0, SIZE, SIZE);
  legend();
}
function legend() {
  const { low, high, stops } = shown.answer.error_scale;
  const parts = stops.filter((stop) => /^#[0-9a-f]{6}$/.test(stop.colour)).map((stop) => `${stop.colour} ${(100 * (stop.percent - low)) / (high - low)}%`);
  $('.um-scale').style.background = `linear-gradient(90deg, ${parts.join(', ')})`;
  $('.um-ticks').replaceChildren(...[0, 0.5, 1].map((share) => {
    const tick = document.createElement('span');
    tick.textContent = percent(low + (high - low) * share) + (share === 1 ? '+' : ''); // larger errors are as dark
    return tick;
  }));
  if (!shown.errors) return;
  const worst = shown.hidden.reduce((a, b) => (shown.errors[b] > shown.errors[a] ? b : a));
  $('.um-worst').textContent = words('view.worst', { r: Math.floor(worst / columns) + 1, c: (worst % columns) + 1, e: percent(shown.errors[worst]) });
}
/** Mean absolute colour error of every patch in percent, from the two pictures on the page. */
function patchErrors({ images }) {
  const read = (image) => {
    const sheet = new OffscreenCanvas(SIZE, SIZE).getContext('2d');
    sheet.drawImage(image, 0, 0, SIZE, SIZE);
    return sheet.getImageData(0, 0, SIZE, SIZE).data;
  };
  const a = read(state.picture.image), b = read(images.reconstruction), sums = new Float64Array(total);
  for (let y = 0; y < SIZE; y++) for (let x = 0; x < SIZE; x++) {
    const at = (y * SIZE + x) * 4, i = Math.floor((y * rows) / SIZE) * columns + Math.floor((x * columns) / SIZE);
    sums[i] += Math.abs(a[at] - b[at]) + Math.abs(a[at + 1] - b[at + 1]) + Math.abs(a[at + 2] - b[at + 2]);
  }
  return sums.map((sum) => (sum / 3 / 255 / ((SIZE / rows) * (SIZE / columns))) * 100);
}
function altText(none, everything) {
  const title = words.title(state.picture);
  if (state.holding || none) return words('alt.original', { title });
  if (everything || !shown) return words('alt.empty');
  const e = percent(shown.answer.metrics.colour_error_percent);
  return words('alt.' + state.view, { title, e, model: shown.answer.model || props.model.name });
}
function cellText() {
  const i = grid.cursor, place = { r: Math.floor(i / columns) + 1, c: (i % columns) + 1 };
  const text = words(grid.hidden[i] ? 'grid.cell_hidden' : 'grid.cell_visible', place);
  return state.view === 'error' && shown?.errors && shown.hidden.includes(i) ? text + ', ' + percent(shown.errors[i]) : text;
}

// --- the controls ------------------------------------------------------------------------------------------------
function controls() {
  const known = state.known, k = known ? grid.count : promised(currentRatio()), p = currentRatio();
  $('.um-count').textContent = countText(k);
  all('.um-ratio').forEach((node) => {
    node.value = String(p);
    node.style.setProperty('--share', ((p - 1) / 98) * 100 + '%');
    node.setAttribute('aria-valuetext', words('control.ratio_value', { k, n: total, p: number((k / total) * 100) }));
  });
  $('.um-ratio-value').textContent = words('control.ratio_value', { k, n: total, p: number((k / total) * 100) });
  $('.um-ratio-short').textContent = percent(p, 0);
  $(`.um-strategy input[value=${state.strategy}]`).checked = true;
  $('.um-strategy-hint').textContent = words(`strategy.${state.strategy}_hint`);
  if (document.activeElement !== $('.um-seed')) $('.um-seed').value = String(state.seed);
  all('.um-undo').forEach((node) => node.setAttribute('aria-disabled', String(!grid.canUndo)));
  $('.um-redo').setAttribute('aria-disabled', String(!grid.canRedo));
  if (shown) sentence();
}
function sentence() {
  const { metrics, timings_ms: timings = {} } = shown.answer;
  words.rich($('.um-sentence'), 'explore.sentence', {
    v: String(total - shown.hidden.length), n: String(total), e: percent(metrics.colour_error_percent),
    b: percent(metrics.plain_fill.colour_error_percent),
    ms: words('explore.milliseconds', { x: number(Object.values(timings).reduce((a, b) => a + b, 0), 0) }),
  });
}
const shuffle = () => setRule({ strategy: state.lastRule, seed: Math.floor(Math.random() * 10000) });
const invert = () => grid.edit(grid.hidden.map((value) => 1 - value));
const fill = (value) => grid.edit(new Uint8Array(total).fill(value));

on('.um-shuffle', 'click', shuffle);
on('.um-invert', 'click', invert);
on('.um-show', 'click', () => fill(0));
on('.um-hide', 'click', () => fill(1));
on('.um-undo', 'click', () => grid.undo());
on('.um-redo', 'click', () => grid.redo());
on('.um-strategy', 'change', (event) => setRule({ strategy: event.target.value }));
on('.um-ratio', 'input', (event) => { setRatio(Number(event.target.value)); gesture = true; });
on('.um-ratio', 'change', () => { gesture = false; });
on('.um-seed', 'change', (event) => {
  const seed = Number(event.target.value);
  if (Number.isInteger(seed) && seed >= 0 && seed <= 4294967295 && event.target.value !== '') setRule({ seed, strategy: state.lastRule });
  else event.target.value = String(state.seed);
});
on('.um-view', 'change', (event) => {
  state.view = event.target.value;
  if (state.view === 'error' && shown && !shown.images.error) { state.force = true; client.pump(); }
  renderRight();
});
on('.um-split', 'input', renderRight);
on('.um-paste', 'change', (event) => { state.paste = event.target.checked; renderRight(); });
on('.um-live', 'change', (event) => { state.live = event.target.checked; client.pump(); renderRight(); });
on('.um-run', 'click', () => { state.force = true; client.pump(); });
on('.um-again', 'click', () => client.again());
on('.um-stop', 'click', () => client.stop());

function hold(holding) {
  state.holding = holding;
  $('.um-hold').setAttribute('aria-pressed', String(holding));
  $('#um-right-title').textContent = words(holding ? 'explore.right_original' : 'explore.right');
  renderRight();
}
on('.um-hold', 'pointerdown', (event) => { event.target.setPointerCapture(event.pointerId); hold(true); });
for (const type of ['pointerup', 'pointercancel', 'blur']) on('.um-hold', type, () => hold(false));
on('.um-hold', 'keydown', (event) => { if (event.key === ' ' || event.key === 'Enter') { event.preventDefault(); hold(true); } });
on('.um-hold', 'keyup', () => hold(false));
on('.um-hold', 'contextmenu', (event) => event.preventDefault());

/** "r3-8 c2-5, r12" -> mask; null when it is not understood. */
function parseRanges(text) {
  const next = grid.hidden.slice();
  for (const part of text.trim().toLowerCase().split(/\s*[,;]\s*/)) {
    const found = part.match(/^(?:r(\d+)(?:-(\d+))?)?\s*(?:c(\d+)(?:-(\d+))?)?$/);
    if (!found || !part) return null;
    const [r0, r1, c0, c1] = found.slice(1).map((value) => (value === undefined ? undefined : Number(value)));
    const [top, bottom, left, right] = [r0 ?? 1, r1 ?? r0 ?? rows, c0 ?? 1, c1 ?? c0 ?? columns];
    if (top < 1 || left < 1 || bottom > rows || right > columns || top > bottom || left > right) return null;
    for (let y = top; y <= bottom; y++) for (let x = left; x <= right; x++) next[(y - 1) * columns + x - 1] = 1;
  }
  return next;
}
on('.um-ranges-form', 'submit', (event) => {
  event.preventDefault();
  const text = $('.um-ranges-text').value, next = parseRanges(text);
  $('.um-ranges-text').setAttribute('aria-invalid', String(!next));
  if (next) { status(''); grid.edit(next); } else status('control.ranges_bad', { text }, 'error');
});

// --- keys that work anywhere ---------------------------------------------------------------------------------------
let letters = remembered('unmask-letters') !== 'off';
$('.um-letters').checked = letters;
on('.um-letters', 'change', (event) => { letters = event.target.checked; remember('unmask-letters', letters ? 'on' : 'off'); });
on('.um-keys-open', 'click', () => $('.um-keys').showModal());
on('.um-keys-close', 'click', () => $('.um-keys').close());
const writes = (node) => node instanceof HTMLElement && (node.isContentEditable || node.matches('textarea, select, input:not([type=range], [type=radio], [type=checkbox], [type=file])'));
const LETTERS = { s: shuffle, i: invert, a: () => fill(0), '[': () => setRatio(currentRatio() - 5), ']': () => setRatio(currentRatio() + 5), '?': () => $('.um-keys').showModal() };
on(document, 'keydown', (event) => {
  if (!visible() || writes(event.target) || $('.um-keys').open) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && !event.altKey && (key === 'z' || key === 'y')) {
    event.preventDefault();
    if (key === 'y' || event.shiftKey) grid.redo(); else grid.undo();
  } else if (letters && !event.ctrlKey && !event.metaKey && !event.altKey && !grid.busy) {
    if (key === 'o' && !event.repeat) hold(true);
    else if (LETTERS[key]) { event.preventDefault(); LETTERS[key](); }
  }
});
on(document, 'keyup', (event) => { if (state.holding && event.key.toLowerCase() === 'o') hold(false); });

// --- pictures --------------------------------------------------------------------------------------------------------
function offer(blob, title, sample = '') { state.incoming = { blob, title, sample }; status(''); client.replace(); }
async function offerSample(sample) {
  const response = await fetch(rootUrl('v1/samples/' + encodeURIComponent(sample.name))).catch(() => null);
  if (response && response.ok) offer(await response.blob(), sample.title, sample.name);
  else status('status.offline', {}, 'error');
}
function offerFile(file) { if (file) offer(file, file.name || words('pictures.pasted_title')); }
props.samples.forEach((sample) => {
  const button = document.createElement('button'), image = document.createElement('img');
  button.type = 'button'; button.className = 'um-sample'; button.dataset.name = sample.name;
  button.setAttribute('aria-pressed', 'false');
  image.src = sample.thumb; image.width = image.height = 72;
  button.append(image);
  button.addEventListener('click', () => offerSample(sample));
  $('.um-samples').append(button);
});
function nameSamples() {
  props.samples.forEach((sample, i) => {
    const button = all('.um-sample')[i], title = words.title({ ...sample, sample: sample.name });
    const licence = sample.licence === 'Public domain' ? words('pictures.public_domain') : sample.licence;
    button.title = words('pictures.example', { ...sample, title, licence });
    button.firstElementChild.alt = title;
  });
}
on('.um-file', 'change', (event) => { offerFile(event.target.files[0]); event.target.value = ''; });
on(document, 'paste', (event) => {
  const file = [...(event.clipboardData?.files || [])].find((item) => item.type.startsWith('image/'));
  if (file && visible()) { event.preventDefault(); offerFile(file); }
});
const carriesFiles = (event) => visible() && [...(event.dataTransfer?.types || [])].includes('Files');
on(document, 'dragover', (event) => { if (carriesFiles(event)) { event.preventDefault(); $('.um-drop').hidden = false; } });
on(document, 'dragleave', (event) => { if (!event.relatedTarget) $('.um-drop').hidden = true; });
on(document, 'drop', (event) => { if (carriesFiles(event)) { event.preventDefault(); $('.um-drop').hidden = true; offerFile(event.dataTransfer.files[0]); } });

on('.um-download', 'click', async () => {
  if (!state.picture || !grid.count || grid.count === total) return;
  const body = new FormData();
  body.append('image', state.picture.blob, 'picture');
  maskFields(body, isRule() ? 'rule' : 'mask');
  const response = await fetch(rootUrl('v1/reconstruct'), { method: 'POST', body, headers: { accept: 'image/png' } }).catch(() => null);
  if (!response || !response.ok) { status(response ? 'status.failed' : 'status.offline', {}, 'error'); return; }
  const link = document.createElement('a'), name = state.picture.title.toLowerCase().replace(/\.\w+$/, '').replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '').slice(0, 40) || 'picture';
  link.download = `unmask-${name}-${grid.count}-of-${total}.png`;
  link.href = URL.createObjectURL(await response.blob());
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  status('status.saved', { name: link.download });
});

// --- size, colours, start ------------------------------------------------------------------------------------------------
function fit() {
  const phone = innerWidth < 700, room = (phone ? $('.um-pair') : $('.um-left')).clientWidth - (phone ? (innerWidth < 380 ? 16 : 38) : 0);
  const side = columns * Math.max(1, Math.floor(Math.min(phone ? 560 : 448, room) / columns));
  element.querySelector('.um-explore').style.setProperty('--side', side + 'px');
  grid.fit(side);
}
new ResizeObserver(fit).observe($('.um-explore'));
new MutationObserver(() => grid.redraw()).observe(document.body, { attributes: true, attributeFilter: ['class'] });
Object.assign(window.unmask, { state, grid, client, shown: () => shown, mask: () => Array.from(grid.hidden).join('') });
/** Everything that is said, said in the language that is on. */
function speak() {
  words.fill(element); nameSamples(); say('');
  $('.um-grid').setAttribute('aria-roledescription', words('grid.role'));
  $('.um-grid').setAttribute('aria-label', words('grid.label', { r: rows, c: columns }));
  $('#um-right-title').textContent = words(state.holding ? 'explore.right_original' : 'explore.right');
  status(...told); controls(); renderRight();
}
document.addEventListener('unmask:language', speak);
fit(); speak();
if (props.samples.length) offerSample(props.samples[0]);
