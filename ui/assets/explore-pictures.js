/** Where everything stands in one column, what was asked for above is out of sight. */
function lookAtPair() {
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (innerWidth < 1024) $('.um-pair').scrollIntoView({ behavior: still ? 'auto' : 'smooth', block: 'start' });
}
// --- pictures --------------------------------------------------------------------------------------------------------
let wish = new AbortController(); // of what was chosen last: aborted when another is
function offer(blob, title, sample = '') {
  wish.abort('replaced');
  wish = new AbortController();
  choose({ blob, title, sample, crop: '' });
  if (!client.waits) status('');
  client.replace();
}
/** Without a picture there is nothing to do, so the server is asked until it gives it, or another is chosen. */
async function offerSample(sample) {
  wish.abort('replaced');
  const mine = (wish = new AbortController());
  const slow = setTimeout(() => { $('.um-bar').hidden = false; }, 300);
  const waiting = (what, s) => { if (!client.waits) status('status.' + what, { s }, what === 'away' ? 'error' : ''); };
  try {
    const response = await patiently(() => fetch(rootUrl('v1/samples/' + encodeURIComponent(sample.name))), { signal: mine.signal, waiting, tries: Infinity });
    const blob = await response.blob();
    if (!mine.signal.aborted) offer(blob, sample.title, sample.name); // else another was chosen while it was on its way
  } catch (error) {
    if (!mine.signal.aborted) status(...failureOf(error), 'error');
  } finally {
    clearTimeout(slow);
    if (client.idle) $('.um-bar').hidden = true;
  }
}
function offerFile(file) { if (file) { offer(file, file.name || words('pictures.pasted_title')); lookAtPair(); } }
props.samples.forEach((sample) => {
  const button = document.createElement('button'), image = document.createElement('img');
  button.type = 'button'; button.className = 'um-sample'; button.dataset.name = sample.name;
  button.setAttribute('aria-pressed', 'false');
  image.src = sample.thumb; image.width = image.height = 72;
  image.draggable = false; // a slip of the mouse is a click
  button.append(image);
  button.addEventListener('click', () => { offerSample(sample); lookAtPair(); });
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
// On every tab: the browser would leave the page for a file that nobody takes, and with it all that was done here.
// A picture of the page that is dragged carries a file too: it is none of the reader's.
let ours = false;
for (const type of ['dragstart', 'dragend']) on(document, type, () => { ours = type === 'dragstart'; });
const carriesFiles = (event) => !ours && [...(event.dataTransfer?.types || [])].includes('Files');
on(document, 'dragover', (event) => { if (carriesFiles(event)) { event.preventDefault(); $('.um-drop').hidden = false; } });
on(document, 'dragleave', (event) => { if (!event.relatedTarget) $('.um-drop').hidden = true; });
on(document, 'drop', (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $('.um-drop').hidden = true;
  const { files } = event.dataTransfer;
  if (!document.dispatchEvent(new CustomEvent('unmask:drop', { detail: files, cancelable: true }))) return; // the tab that is open took them
  document.dispatchEvent(new CustomEvent('unmask:open', { detail: 'explore' }));
  offerFile(files[0]);
});

// --- files of what is on screen --------------------------------------------------------------------------------------------
/** The panels beside each other; what is sent is the crop already. */
function sheetOf({ fields: { crop, ...fields }, panels }, picture) {
  return { fields: { ...fields, panels: panels.join(',') }, blob: picture.blob, types: ['image/png'] };
}
/** What is on the right, laid over the file as it was given. A PNG stays exact where the server sends one so large. */
function photoOf({ fields, panels }, picture) {
  const types = picture.source.type === 'image/png' ? ['image/png', 'image/jpeg'] : ['image/jpeg'];
  return { fields: { ...fields, panel: panels[1], full_size: 'true' }, blob: picture.source, types, name: '-full-size' };
}
/** Asks for a file in the first of its types that the server does not find too large. */
async function askFile({ fields, blob, types: [type, ...others] }, waiting) {
  try {
    return await askPatiently(fields, blob, { accept: type, waiting });
  } catch (error) {
    if (problemType(error.problem) === 'answer-too-large' && others.length) return askFile({ fields, blob, types: others }, waiting);
    throw error;
  }
}
/** Of what is on screen now, whatever is drawn while the file is made; a button that is busy takes no second press. */
async function download(button, fileOf) {
  if (button.ariaBusy === 'true') return;
  const { picture, mask } = store.state, file = fileOf(store.request(), picture);
  if (file.fields.fit === 'whole') file.fields.grid = `${mask.rows}x${mask.columns}`;
  button.ariaBusy = 'true';
  status('status.making');
  try {
    const blob = await (await askFile(file, (what, s) => status('status.' + what, { s }))).blob();
    const title = picture.title.toLowerCase().replace(/\.\w+$/, '').replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '').slice(0, 40) || 'picture';
    const name = `unmask-${title}-${mask.hidden.length}-of-${mask.rows * mask.columns}${file.name || ''}.${blob.type === 'image/png' ? 'png' : 'jpg'}`;
    save(blob, name);
    status(blob.type === file.types[0] ? 'status.saved' : 'status.saved_jpeg', { name });
  } catch (error) {
    if (problemType(error.problem) === 'answer-too-large') status('status.answer_too_large', {}, 'error'); else status(...failureOf(error), 'error');
  } finally {
    button.ariaBusy = 'false';
  }
}
on('.um-download-sheet', 'click', (event) => download(event.currentTarget, sheetOf));
on('.um-download-photo', 'click', (event) => download(event.currentTarget, photoOf));

// --- which part of the picture -----------------------------------------------------------------------------------------
/** A picture that is not square can be seen whole, or by a square that is moved along its longer side. */
function offerCrops(placement) {
  state.placement = placement;
  const hint = $('.um-pictures > .um-hint');
  hint.dataset.t = state.source.sentAs || (state.fit === 'whole' ? 'pictures.own_hint_whole' : 'pictures.own_hint');
  hint.textContent = words(hint.dataset.t);
  const long = placement.original_width !== placement.original_height;
  $('.um-whole-row').hidden = !long && state.fit === 'square';
  $('.um-whole').checked = state.fit === 'whole';
  $('.um-move').hidden = !long || state.fit === 'whole';
  if (!long || state.fit === 'whole') return;
  const room = Math.abs(placement.original_width - placement.original_height);
  // In pixels of the file: of a nearly square one a hundredth is less than a pixel, and no key would move it.
  Object.assign($('.um-move-range'), { max: room, step: Math.max(1, room / 100), value: placement.left + placement.top });
  nameMove();
}
function nameMove() {
  const { value, max } = $('.um-move-range');
  $('.um-move-range').setAttribute('aria-valuetext', percent((100 * value) / max, 0));
}
on('.um-move-range', 'input', nameMove);
on('.um-whole', 'change', (event) => {
  state.fit = event.target.checked ? 'whole' : 'square';
  readAgain('');
});
on('.um-move-range', 'change', (event) => {
  const { original_width: width, original_height: height } = state.placement, side = Math.min(width, height);
  const offset = Math.round(Number(event.target.value));
  readAgain(width > height ? `${offset},0,${side}` : `0,${offset},${side}`);
});

// --- things to try -------------------------------------------------------------------------------------------------------
/** Patches whose middle lies in left, top, right, bottom, given as shares of the picture. */
function patchesIn([left, top, right, bottom]) {
  const next = new Uint8Array(total);
  for (let i = 0; i < total; i++) {
    const x = ((i % columns) + 0.5) / columns, y = (Math.floor(i / columns) + 0.5) / rows;
    if (x > left && x < right && y > top && y < bottom) next[i] = 1;
  }
  return next;
}
function hideMain() {
  const sample = props.samples.find(({ name }) => state.picture && name === state.picture.sample);
  grid.edit(patchesIn(sample && sample.main ? sample.main : [0.25, 0.25, 0.75, 0.75]));
}
/** The same share hidden, once spread and once in one piece; each press shows the other. */
function randomOrBlock() {
  const strategy = state.strategy === 'block' ? 'random' : 'block';
  setRule({ strategy, ratios: { ...state.ratios, [strategy]: 75 } });
}
on('.um-try .um-chip', 'click', lookAtPair);
on('.um-try-main', 'click', hideMain);
on('.um-try-little', 'click', () => setRule({ strategy: 'random', ratios: { ...state.ratios, random: 90 } }));
on('.um-try-block', 'click', randomOrBlock);
