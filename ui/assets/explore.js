// The Explore tab: what is hidden, what was asked, what came back. The other explore-*.js files show and change it.
// All run as one function body with `element` (this tab) and `props` (words, model, samples).
const words = wordsOf(props.words);
const visible = () => element.checkVisibility(); // another tab may be open: what is typed and dropped there is not ours
const $ = (selector) => element.querySelector(selector), all = (selector) => [...element.querySelectorAll(selector)];
const on = (target, type, run) => (typeof target === 'string' ? all(target) : [target]).forEach((node) => node.addEventListener(type, run));

// --- state -------------------------------------------------------------------------------------------------
let model = props.model;                       // the one in use
let [rows, columns] = model.grid, total = rows * columns;
let WIDTH = model.image_size, HEIGHT = WIDTH;  // pixels the model works on
const state = {
  strategy: 'random', lastRule: 'random', ratios: { random: 75, block: 50, grid: 75 }, seed: 7,
  known: false,      // whether the grid shows the mask of the rule above, or its answer is still awaited
  edition: 0,        // counts changes of rule and mask: an answer to an older rule must not overwrite a newer drawing
  view: 'result', paste: true, live: true, force: false, holding: false,
  honest: '',        // how normalised pixels become a picture; '' for the model's own first way
  fit: 'square', crop: '', // or 'whole'; left,top,side of the picture's square where it is not the middle one
  placement: null,   // where the crop lies in the file
  source: null,      // {blob, title, sample, crop}: the file as it was given, for another crop or another model
  picture: null,     // {blob, image, title, sample, source}: the model's own crop, sent with every request; source: the file
  incoming: null,    // a source that is chosen and not yet accepted by the server
  offered: 0,        // number of the newest source that could be sent
  samples: 8,        // masks of the uncertainty; fewer where the server is slow
  spread: '',        // '', 'wanted' or 'asked': the uncertainty is computed once after a change, not while drawing
  behind: false,     // the newest request came to nothing yet: the result may belong to an older mask
};
let shown = null;    // {hidden, images, answer, title, errors, spread}: the result on the right, with its mask
let gesture = false; // a slider is being dragged: one step of the history

let saying = 0;
const say = (text) => { clearTimeout(saying); $('.um-say').textContent = text; };
/** What came of a gesture, once it rests: many results follow each other in a stroke. */
function sayResult() {
  clearTimeout(saying);
  saying = setTimeout(() => {
    const what = mapOf(viewNow()) ? result.getAttribute('aria-label') : words.title(state.picture);
    say(`${what}. ${$('.um-sentence').textContent} ${$('.um-worst').textContent}`.trim());
  }, 800);
}
const promised = (ratio) => total - Math.min(total - 1, Math.max(1, Math.floor((total * (100 - ratio)) / 100)));
const isRule = () => state.strategy !== 'draw';
const countText = (k) => words('explore.count', { k, n: total });

const grid = createGrid($('.um-grid'), {
  rows, columns,
  rule: () => ({ strategy: state.strategy, lastRule: state.lastRule, ratios: { ...state.ratios }, seed: state.seed, known: state.known }),
  setRule(rule) { Object.assign(state, rule, { ratios: { ...rule.ratios } }); touched(); client.pump(); },
  changed(kind) {
    if (kind === 'edit') { drawByHand(); touched(); if (state.behind || state.view === 'uncertainty' || !$('.um-note').hidden) renderRight(); client.pump(); }
    if (kind === 'end') { showView(); say([countText(grid.count), $('.um-note').textContent, $('.um-view-hint').textContent].filter(Boolean).join('. ')); wantSpread(); } // once a stroke, not once a patch
    if (kind === 'move') say(cellText());
    controls();
  },
});

function touched() {
  state.edition++;
  if (state.spread === 'asked') client.replace(); // many masks of what is no longer there: nobody waits for them
}
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

/** Another model or another crop has another grid; a drawn mask is carried over, a rule draws anew. */
function reshape(shape, width, height) {
  WIDTH = width; HEIGHT = height;
  result.width = width; result.height = height;
  if (shape[0] !== rows || shape[1] !== columns) {
    [rows, columns] = shape; total = rows * columns;
    grid.reshape(rows, columns);
    if (isRule()) state.known = false;
    shown = null; touched();
    nameGrid(); controls();
  }
  fit();
}
/** Reads the picture again: another crop, or another model with another size. */
function readAgain(crop = state.crop) {
  if (state.fit === 'square') reshape(model.grid, model.image_size, model.image_size);
  const source = state.incoming || state.source; // the newest, also one that the server has not read yet
  if (!source) return;
  const own = Boolean(state.source) && source.blob === state.source.blob; // a crop belongs to the picture on screen
  choose({ ...source, crop: own ? crop : source.crop }); client.replace();
}

// --- asking the server ----------------------------------------------------------------------------------------
function nextJob() {
  const none = state.known && (grid.count === 0 || grid.count === total);
  const waits = state.known && !state.live && !state.force && !state.incoming && shown && state.spread !== 'wanted'; // a view was chosen, nothing drawn
  if (!(state.incoming || state.picture) || (!state.incoming && (none || waits))) { renderRight(); return null; }
  if (state.spread === 'wanted' && isCurrent() && !state.incoming) return spreadJob();
  const kind = !state.known ? 'rule' : none || (state.incoming && state.fit === 'whole') ? 'picture' : 'mask';
  const panels = [state.honest === 'normalised' ? 'reconstruction,pasted' : 'reconstruction'];
  if (state.incoming) panels.push('original');
  if (state.view === 'error') panels.push('error');
  const body = form(panels, kind);
  state.force = false;
  const fields = { ...maskFields(isDrawn() ? 'mask' : 'rule'), ...placeFields(state.incoming ? state.incoming.crop : state.crop) };
  return { body, kind, fields, by: byNow(), model: store.state.model, incoming: state.incoming, edition: state.edition, view: state.view };
}
const isDrawn = () => !isRule() && state.known;
/** Who draws the result, and how: with the mask, all that it depends on. */
const byNow = () => [model.name, state.honest].join();
/** Whether what is on the right belongs to what is on the left. */
const isCurrent = () => Boolean(shown) && state.known && shown.edition === state.edition;
function spreadJob() {
  state.spread = 'asked';
  const body = form(['uncertainty'], 'rule');
  body.append('cover', 'ensemble');
  body.append('samples', String(state.samples));
  return { body, kind: 'spread', edition: state.edition };
}
function wantSpread() { state.spread = state.view === 'uncertainty' && isRule() && !alwaysSame() ? 'wanted' : ''; }
function form(panels, kind) {
  const body = new FormData();
  body.append('image', (state.incoming || state.picture).blob, 'picture');
  body.append('panels', panels.join(','));
  body.append('ssim', 'false'); // the page shows none, and it is what takes longest beside the network
  const fields = { ...maskFields(kind), ...placeFields(state.incoming ? state.incoming.crop : '') }; // else what is sent is the crop already
  for (const [key, value] of Object.entries(fields)) body.append(key, value);
  if (state.fit === 'whole' && !state.incoming) body.append('grid', `${rows}x${columns}`); // the crop lies on it already
  return body;
}
function maskFields(kind) {
  if (kind === 'mask') return { strategy: 'indices', indices: JSON.stringify(grid.indices) };
  const strategy = isRule() ? state.strategy : 'random';
  return { strategy, ratio: (state.ratios[strategy] / 100).toFixed(2), seed: String(state.seed) };
}
/** What differs from the API's own defaults, and only that. */
function placeFields(crop = state.crop) {
  const fields = {};
  if (store.state.models.length > 1 && model.name !== store.state.models[0].name) fields.model = model.name;
  if (state.honest) fields.view = state.honest;
  if (state.fit === 'whole') fields.fit = 'whole';
  if (crop && state.fit === 'square') fields.crop = crop;
  return fields;
}
async function accept(job, answer, images) {
  if (job.kind === 'spread') { acceptSpread(job, answer, images); return; }
  if (job.incoming) {
    const editions = await adopt(job.incoming, answer, images.original);
    if (editions === null) return;
    job.edition += editions;
  }
  if (job.kind === 'picture') { renderRight(); if (state.fit === 'whole') client.pump(); return; } // only the crop was wanted
  if (job.kind === 'rule') {
    if (state.known) return; // drawn over in the meantime: the newer mask is already on its way
    grid.take(answer.hidden);
    if (job.edition === state.edition) state.known = true;
  }
  const { fields, by, edition } = job;
  shown = { hidden: answer.hidden, images, answer, title: state.picture.title, errors: null, spread: null, edition, fields, by, model: job.model };
  // In the view of contrast the photo it is held against is not at hand, so no patch is named.
  if (job.view === 'error' && answer.view !== 'normalised') shown.errors = patchErrors(state.picture.image, images.reconstruction, rows, columns);
  if (!gesture) wantSpread();
  status(job.incoming?.sentAs || ''); share(); controls(); renderRight(); firstShown(); sayResult();
  if (state.spread) client.pump();
}
function acceptSpread(job, answer, images) {
  state.spread = '';
  if (job.edition !== state.edition || !shown) return;
  shown.spread = { image: images.uncertainty, answer };
  share(); renderRight(); say(result.getAttribute('aria-label'));
}
/** Tells the other tabs what is on screen now. */
function share() {
  if (!shown) return;
  const { answer, hidden, images, title, fields } = shown;
  store.set({
    picture: state.picture, fields, mask: { rows, columns, hidden },
    result: { answer, images, hidden, title, model: shown.model, edition: state.edition },
    show: { panel: viewNow(), paste: state.paste, samples: state.samples },
  });
  noteAddress();
}
/** A source to be sent to the server: the newest one counts. */
function choose(source) { state.offered += 1; state.incoming = { ...source, number: state.offered }; }
/** The server has read the picture: from now on its crop is the picture. Gives the editions that this took; null for an old one. */
async function adopt(incoming, answer, original) {
  const blob = fetchable(original);
  const sharp = await sharpened(incoming, answer.placement).catch(() => original);
  if (incoming.number < state.offered) return null; // a large file takes seconds to decode: another was chosen meanwhile
  state.source = incoming; state.crop = incoming.crop;
  state.picture = { blob, image: original, title: incoming.title, sample: incoming.sample, source: incoming.blob };
  if (state.incoming === incoming) state.incoming = null;
  const before = state.edition;
  reshape(answer.grid, original.naturalWidth, original.naturalHeight);
  grid.picture(sharp);
  offerCrops(answer.placement);
  all('.um-sample').forEach((node) => node.setAttribute('aria-pressed', String(node.dataset.name === incoming.sample)));
  $('.um-upload').classList.toggle('um-chosen', !incoming.sample);
  return state.edition - before;
}
/** The same part of the file in more pixels than the model works on: for the eye only. */
async function sharpened(incoming, placement) {
  const bitmap = await createImageBitmap(incoming.blob, { imageOrientation: 'from-image' });
  const { left, top, width, height } = placement;
  if (bitmap.width !== placement.original_width || bitmap.height !== placement.original_height) throw new Error('turned otherwise');
  const scale = Math.min(1, 896 / Math.max(width, height)), sheet = document.createElement('canvas');
  sheet.width = Math.round(width * scale); sheet.height = Math.round(height * scale);
  const context = sheet.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.fillStyle = '#fff'; context.fillRect(0, 0, sheet.width, sheet.height); // as the model sees what is transparent
  context.drawImage(bitmap, left, top, width, height, 0, 0, sheet.width, sheet.height);
  bitmap.close();
  return sheet;
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
  const type = problemType(problem);
  if (job.kind === 'spread') {
    const fewer = type === 'too-much-work' && state.samples > 2;
    if (fewer) state.samples /= 2;
    state.spread = fewer ? 'wanted' : '';
    if (fewer) { client.pump(); return; }
  }
  if (job.incoming && state.incoming === job.incoming) state.incoming = null;
  state.behind = true; renderRight();
  const key = REASONS[type] || (code === 413 ? 'size' : code === 415 ? 'type' : 'refused');
  const sentAs = ['size', 'pixels'].includes(key) ? 'status.smaller' : type === 'image-format' && 'status.converted';
  if (job.incoming && !job.incoming.sentAs && sentAs) { sendJpeg(job, code, problem, sentAs); return; }
  const tell = (limit) => status('status.' + key, { reason: String(problem.detail || problem.title || code), ...limit }, 'error');
  if (key !== 'size') tell({ m: number(props.limits.pixels / 1e6, 0), side: number(props.limits.side) });
  else fetch(rootUrl('v1/info')).then((r) => r.json()).then(({ limits }) => tell({ m: number(limits.max_bytes / 2 ** 20, 0) }), () => tell({ m: '?' }));
}
/** What the server does not take as it is, is sent again as the browser draws it; `sentAs` tells of it. */
async function sendJpeg(job, code, problem, sentAs) {
  const { signal } = wish, incoming = { ...job.incoming, sentAs };
  const blob = await shrunk(incoming.blob).catch(() => null); // not all that a visitor may choose is read by the browser
  const heic = !blob && await isHeic(incoming.blob);
  if (signal.aborted) return; // another was chosen meanwhile
  if (heic) { status('status.heic', {}, 'error'); return; }
  if (!blob) { refuse({ ...job, incoming }, code, problem); return; }
  choose({ ...incoming, blob });
  client.replace();
}
function report(what, seconds) {
  const working = ['bar', 'slow', 'queue'].includes(what);
  if (what === 'idle') state.behind = false;
  else if (!working) {
    state.behind = true;
    if (state.spread) state.spread = ['timeout', 'failed', 'stopped'].includes(what) ? '' : 'wanted'; // asked again, or not
    renderRight();
  }
  $('.um-bar').hidden = !working;
  $('.um-stop').hidden = !working || what === 'bar';
  if (what === 'slow') { if (told[0] !== 'status.slow_queue') status('status.slow'); }
  else if (what === 'queue') { const line = queueWords(words, seconds); if (line) status('status.slow_queue', { line }); }
  else if (what === 'idle') { if (!$('.um-status').classList.contains('um-error')) status(''); }
  else if (['busy', 'limited', 'loading'].includes(what)) status('status.' + what, { s: seconds });
  else if (what !== 'bar') status('status.' + what, {}, 'error', true);
}
const COUNTED = ['status.busy', 'status.limited', 'status.loading', 'status.offline', 'status.away', 'status.slow_queue'];
const DONE = ['status.saved', 'status.saved_jpeg', 'status.link', 'status.link_own', 'status.link_address'];
let leaving = 0;
let told = ['']; // what the status line says, to say it again in the other language
function status(key, values = {}, tone = '', again = false) {
  const line = $('.um-status'), text = key && words(key, values);
  line.ariaLive = key === told[0] && COUNTED.includes(key) ? 'off' : null; // spoken once, not each second
  told = [key, values, tone, again];
  if ($('.um-status-text').textContent !== text) $('.um-status-text').textContent = text;
  line.classList.toggle('um-error', tone === 'error');
  $('.um-again').hidden = !again;
  clearTimeout(leaving); // where it lies over the page, what needs no answer goes by itself
  if (DONE.includes(key)) leaving = setTimeout(() => { if (line.classList.contains('um-away')) status(''); }, 8000);
}
const client = createClient({ url: rootUrl('v1/reconstruct'), next: nextJob, accept, refuse, report });
