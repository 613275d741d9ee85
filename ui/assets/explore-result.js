// --- the right picture: result, slider, error, uncertainty -----------------------------------------------------
const result = $('.um-result'), paint = result.getContext('2d');
result.width = WIDTH; result.height = HEIGHT;
const patch = (i) => [(i % columns) * (WIDTH / columns), Math.floor(i / columns) * (HEIGHT / rows), WIDTH / columns, HEIGHT / rows];

function renderRight() {
  const none = state.known && grid.count === 0, everything = state.known && grid.count === total;
  const plain = none || everything, same = state.known && grid.indices.join() === shown?.hidden.join() && shown.by === byNow(), waits = !same && (state.behind || (state.known && !state.live));
  const view = showView(), stale = Boolean(shown) && !plain && waits, slider = view === 'slider' && !state.holding && !plain;
  $('.um-badge').hidden = !stale; $('.um-run').hidden = state.live; $('.um-run').disabled = !stale;
  $('.um-split').hidden = $('.um-line').hidden = !slider;
  $('.um-sentence').hidden = plain;
  for (const button of all('.um-download')) button.disabled = plain || !shown;
  $('.um-paste').disabled = MAPS.includes(view); $('.um-paste-off').hidden = !MAPS.includes(view);
  note(none ? words('status.nothing') : everything ? words('status.all') : view === 'uncertainty' && !shown?.spread ? words('view.spread_wait', { s: state.samples }) : '');
  legend(view, plain ? null : scaleOf(view));
  if (!state.picture) return;
  paint.clearRect(0, 0, WIDTH, HEIGHT);
  if (state.holding || none) paint.drawImage(state.picture.image, 0, 0, WIDTH, HEIGHT);
  else if (!everything && shown) paintView(view);
  result.setAttribute('aria-label', altText(view, none, everything));
}
function note(text) {
  if (text && text !== $('.um-note').textContent) say(text);
  $('.um-note').textContent = text; $('.um-note').hidden = !text;
}
const MAPS = ['error', 'uncertainty']; // views with a picture of their own
/** That picture, as soon as it is there. */
const mapOf = (view) => (view === 'error' ? shown?.images.error : view === 'uncertainty' ? shown?.spread?.image : null);
function paintView(view) {
  const map = mapOf(view);
  if (map) paint.drawImage(map, 0, 0, WIDTH, HEIGHT);
  else if (view === 'slider') paintSlider();
  else paintResult();
}
/** Why the chosen view cannot be shown, a key of the words; '' where it can, or is on its way. */
function viewFault() {
  if (state.view === 'uncertainty' && !isRule()) return 'view.spread_rule';
  if (state.view === 'uncertainty' && alwaysSame()) return 'view.spread_same';
  const lacks = shown && MAPS.includes(state.view) && !mapOf(state.view);
  return lacks && state.behind && !state.spread ? 'view.missing' : '';
}
/** What is on the right: the chosen view, or the result where that cannot be shown. */
const viewNow = () => (viewFault() ? 'result' : state.view);
function showView() {
  const view = viewNow(), fault = viewFault(), hint = $('.um-view-hint'), text = fault && words(fault);
  $(`.um-view input[value=${view}]`).checked = true;
  if (text && hint.textContent !== text) say(text);
  hint.textContent = text; hint.hidden = !text;
  return view;
}
function paintResult() {
  if (state.paste && shown.images.pasted) { paint.drawImage(shown.images.pasted, 0, 0, WIDTH, HEIGHT); return; }
  paint.drawImage(shown.images.reconstruction, 0, 0, WIDTH, HEIGHT);
  if (!state.paste) return;
  const hidden = new Set(shown.hidden);
  for (let i = 0; i < total; i++) if (!hidden.has(i)) paint.drawImage(state.picture.image, ...patch(i), ...patch(i));
}
function paintSlider() {
  paintResult();
  const share = Number($('.um-split').value) / 100;
  if (share > 0) paint.drawImage(state.picture.image, 0, 0, WIDTH * share, HEIGHT, 0, 0, WIDTH * share, HEIGHT);
  $('.um-line').style.left = share * 100 + '%';
  $('.um-split').setAttribute('aria-valuetext', words('view.slider_value', { x: Math.round(share * 100) }));
}
/**
 * Whether a grid is the same for every seed, so that masks of it cannot disagree: its visible patches fill one place of
 * all cells of 2 x 2 after the other, and where the last place is full nothing was left to chance.
 */
function alwaysSame() {
  const { ceil, floor } = Math, [high, wide] = [rows / 2, columns / 2];
  let left = total - promised(state.ratios.grid);
  return state.strategy === 'grid' && [ceil(high) * ceil(wide), floor(high) * floor(wide), ceil(high) * floor(wide)].some((places) => (left -= places) === 0);
}
function scaleOf(view) {
  if (view === 'error') return shown && shown.images.error ? shown.answer.error_scale : null;
  return view === 'uncertainty' && shown && shown.spread ? shown.spread.answer.uncertainty_scale : null;
}
function legend(view, scale) {
  $('.um-legend').hidden = !scale;
  if (!scale) { $('.um-worst').textContent = ''; return; }
  const { low, high, stops } = scale;
  const parts = stops.filter((stop) => /^#[0-9a-f]{6}$/.test(stop.colour)).map((stop) => `${stop.colour} ${(100 * (stop.percent - low)) / (high - low)}%`);
  $('.um-legend-title').textContent = words(view === 'error' ? 'view.legend' : 'view.legend_spread', { s: shown.spread?.answer.samples });
  $('.um-scale').style.background = `linear-gradient(90deg, ${parts.join(', ')})`;
  $('.um-ticks').replaceChildren(...[0, 0.5, 1].map((share) => {
    const tick = document.createElement('span');
    tick.textContent = percent(low + (high - low) * share, (high - low) % 2 ? 1 : 0) + (share === 1 ? '+' : ''); // larger ones are as dark
    return tick;
  }));
  if (view !== 'error' || !shown.errors) { $('.um-worst').textContent = ''; return; }
  const worst = shown.hidden.reduce((a, b) => (shown.errors[b] > shown.errors[a] ? b : a));
  $('.um-worst').textContent = words('view.worst', { r: Math.floor(worst / columns) + 1, c: (worst % columns) + 1, e: ofView(words, percent(shown.errors[worst]), shown.answer) });
}
function altText(view, none, everything) {
  const title = words.title(state.picture);
  if (state.holding || none) return words('alt.original', { title });
  if (everything || !shown) return words('alt.empty');
  const seen = view === 'slider' || mapOf(view) ? view : 'result';
  return words('alt.' + seen, { title, e: errorText(words, shown.answer), model: shown.answer.model });
}
function cellText() {
  const i = grid.cursor, place = { r: Math.floor(i / columns) + 1, c: (i % columns) + 1 };
  const text = words(grid.hidden[i] ? 'grid.cell_hidden' : 'grid.cell_visible', place);
  return viewNow() === 'error' && shown?.errors && shown.hidden.includes(i) ? text + ', ' + percent(shown.errors[i]) : text;
}
