// --- the controls ------------------------------------------------------------------------------------------------
function controls() {
  const p = currentRatio(), k = state.known ? grid.count : promised(p);
  $('.um-count').textContent = countText(shown ? grid.count : k); // of the grid as it is, though the slider may be ahead of it
  all('.um-ratio').forEach((node) => {
    node.value = String(p);
    node.style.setProperty('--share', ((p - 1) / 98) * 100 + '%');
    node.setAttribute('aria-valuetext', words('control.ratio_value', { k, n: total, p: number((k / total) * 100) }));
  });
  $('.um-ratio-value').textContent = words('control.ratio_value', { k, n: total, p: number((k / total) * 100) });
  $('.um-ratio-short').textContent = percent(p, 0);
  $(`.um-strategy input[value=${state.strategy}]`).checked = true;
  $('.um-strategy-hint').textContent = words(`strategy.${state.strategy}_hint`);
  if (document.activeElement !== $('.um-seed') && wrongAt !== state.seed) seedIs(state.seed);
  all('.um-undo').forEach((node) => node.setAttribute('aria-disabled', String(!grid.canUndo)));
  $('.um-redo').setAttribute('aria-disabled', String(!grid.canRedo));
  if (shown) sentence();
}
function sentence() {
  const { metrics, timings_ms: timings } = shown.answer;
  words.rich($('.um-sentence'), 'explore.sentence', {
    v: String(total - shown.hidden.length), n: String(total), e: errorText(words, shown.answer),
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
function endGesture() {
  if (!gesture) return;
  gesture = false;
  wantSpread(); client.pump();
}
on('.um-ratio', 'change', endGesture);
for (const type of ['pointerup', 'pointercancel']) on(window, type, endGesture); // where it was dragged back nothing changed
let wrongAt = null; // the seed in use while the field holds what is none
function seedIs(seed) { wrongAt = null; $('.um-seed').value = String(seed); $('.um-seed').setAttribute('aria-invalid', 'false'); }
on('.um-seed', 'change', (event) => {
  const seed = Number(event.target.value);
  if (Number.isInteger(seed) && seed >= 0 && seed <= props.limits.seed && event.target.value !== '') {
    if (wrongAt !== null) status('');
    seedIs(seed); setRule({ seed, strategy: state.lastRule });
  } else {
    wrongAt = state.seed;
    event.target.setAttribute('aria-invalid', 'true');
    status('control.seed_bad', { most: props.limits.seed }, 'error');
  }
});
on('.um-view', 'change', (event) => look(event.target.value));
on('.um-view input[value=result]', 'click', () => look('result')); // where it stands in for another view, it is on already
function look(view) {
  state.view = view;
  state.spread = '';
  if (state.view === 'error' && shown && !shown.images.error) { state.force = true; state.behind = false; client.pump(); }
  if (shown && !shown.spread) wantSpread();
  if (state.spread) client.pump();
  share(); renderRight();
  if (['result', 'slider'].includes(viewNow()) || mapOf(view)) say($('.um-view-hint').textContent || result.getAttribute('aria-label')); // else once it is there
}
on('.um-split', 'input', renderRight);
on('.um-paste', 'change', (event) => { state.paste = event.target.checked; share(); renderRight(); });
on('.um-live', 'change', (event) => { state.live = event.target.checked; client.pump(); renderRight(); });
on('.um-run', 'click', () => { state.force = true; client.pump(); });
on('.um-again', 'click', () => { state.force = true; client.again(); });
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

// --- models and the ways to show what they predict ------------------------------------------------------------------
/** Radio buttons for the model's honest views; folded away, and a pixel model needs none. */
function offerViews() {
  const names = (model.views || []).filter((name) => words(`view.honest_${name}`) !== `view.honest_${name}`);
  $('.um-honest').hidden = names.length < 2;
  $('.um-honest fieldset > div').replaceChildren(...names.map((name) => {
    const label = document.createElement('label'), input = document.createElement('input'), text = document.createElement('span');
    input.type = 'radio'; input.name = 'um-honest'; input.value = name; input.checked = name === (state.honest || names[0]);
    text.textContent = words(`view.honest_${name}`);
    label.append(input, text);
    return label;
  }));
  if (state.honest) $('.um-honest').open = true; // such a view says what it uses
  if (names.length > 1) tellView(state.honest || names[0]);
}
function tellView(name) {
  $('.um-honest summary').textContent = words('view.honest_now', { way: words(`view.honest_${name}`) });
  $('.um-honest-hint').textContent = words(`view.note_${name}`);
}
on('.um-honest', 'change', (event) => {
  state.honest = event.target.value === model.views[0] ? '' : event.target.value;
  state.force = true;
  tellView(event.target.value); touched(); client.pump();
});
on(document, 'unmask:choosing', () => status('status.loading'));
on(document, 'unmask:unchosen', () => status('status.unchosen', {}, 'error'));
on(document, 'unmask:model', (event) => {
  model = event.detail;
  state.honest = '';
  touched(); offerViews(); readAgain(); renderRight();
});
