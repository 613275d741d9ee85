// --- the address: what it asks for, and what is on screen ------------------------------------------------------------------
const RULES = ['random', 'block', 'grid'], SHOWS = ['result', 'slider', 'error', 'uncertainty'];
const notUnderstood = []; // names of parameters
let addressing = 0, first = true, unchosen = false; // whether the address names a model that could not be had

/** The address follows what is done, a moment later; the first result leaves it as it was given. */
function noteAddress() {
  clearTimeout(addressing);
  if (!first) addressing = setTimeout(() => history.replaceState(history.state, '', store.link()), 300);
}
const oneOf = (list) => (text) => (list.includes(text) ? text : null);
const between = (low, high, pattern) => (text) => (pattern.test(text) && Number(text) >= low && Number(text) <= high ? Number(text) : null);

/** A drawn mask and the ROWSxCOLUMNS that it was drawn on. */
function drawnMask(text, size) {
  const shape = /^[1-9]\d?x[1-9]\d?$/.test(size) ? size.split('x').map(Number) : null, hidden = shape && unpackMask(text, shape[0] * shape[1]);
  return hidden && { shape, hidden };
}
/** Takes over what the address says; whatever it says wrongly is left out, and told after the first result. */
function readAddress(models) {
  const given = new URLSearchParams(location.search);
  const take = (key, read, use) => {
    if (!given.has(key)) return;
    const value = read(given.get(key));
    if (value === null) notUnderstood.push(key); else use(value);
  };
  take('model', oneOf(models.map(({ name }) => name)), () => {});
  take('view', oneOf(model.views || []), (value) => { state.honest = value === model.views[0] ? '' : value; });
  take('fit', oneOf(['square', 'whole']), (value) => { state.fit = value; });
  take('strategy', oneOf(RULES), (value) => { state.strategy = state.lastRule = value; });
  take('ratio', between(0.01, 0.99, /^[01]?\.\d{1,4}$/), (value) => { state.ratios[state.lastRule] = Math.round(value * 100); });
  take('seed', between(0, props.limits.seed, /^\d{1,10}$/), (value) => { state.seed = value; });
  take('show', oneOf(SHOWS), (value) => { state.view = value; $(`.um-view input[value=${value}]`).checked = true; });
  take('paste', oneOf(['0', '1']), (value) => { state.paste = $('.um-paste').checked = value === '1'; });
  take('m', (text) => drawnMask(text, given.get('n')), ({ shape, hidden }) => {
    const now = [rows, columns];
    state.strategy = 'draw'; state.known = true;
    grid.reshape(...shape); grid.take(hidden); grid.reshape(...now); // that of another shape is carried over by place
  });
  let sample = props.samples[0];
  take('pic', (text) => props.samples.find(({ name }) => name === text) || null, (value) => { sample = value; });
  return sample;
}
/** Once, when the first result is there. */
function firstShown() {
  if (!first) return;
  first = false;
  if (unchosen) status('status.unchosen', {}, 'error');
  else if (notUnderstood.length) status('status.address', { names: notUnderstood.join(', ') });
  document.dispatchEvent(new Event('unmask:first'));
}
on('.um-link', 'click', async (event) => {
  // Of a mask that hides nothing or everything there is no result, and it is not in the store.
  const link = isDrawn() ? linkTo({ ...store.state, fields: { ...placeFields(), ...maskFields('mask') }, mask: { rows, columns, hidden: grid.indices } }) : store.link();
  history.replaceState(history.state, '', link);
  const own = state.picture && !state.picture.sample, done = await copied(link, event.currentTarget || event.target);
  status(!done ? 'status.link_address' : own ? 'status.link_own' : 'status.link');
});

// --- size, colours, start ------------------------------------------------------------------------------------------------
/** What the window leaves for the pictures beside all that is to be seen with them; a passing message is not. */
function heightLeft() {
  const others = $('.um-facts').getBoundingClientRect().bottom + scrollY - $('.um-right .um-picture').clientHeight - $('.um-status-place').clientHeight;
  return Math.max(224, innerHeight - others - 12);
}
/** Whole pixels a patch; the longer side decides, and in the classroom and in a low window, as of a telephone that lies, what it has room for. */
function fit() {
  const low = matchMedia('(min-width: 560px) and (max-width: 1023px) and (max-height: 499px)').matches, phone = innerWidth < 700 && !low, present = !phone && !low && document.body.classList.contains('um-present'), pair = $('.um-pair').clientWidth;
  if (pair <= 0) return; // another tab is open
  const room = phone ? pair - (innerWidth < 380 ? 16 : 38) : present || low ? (pair - 24) / 2 : $('.um-left').clientWidth;
  const [wide, high] = present ? [room, heightLeft()] : phone ? [560, 560] : [448, low ? Math.max(196, innerHeight - 60) : 448];
  const cell = Math.max(1, Math.floor(Math.min(room / columns, wide / columns, high / rows)));
  const style = element.querySelector('.um-explore').style;
  style.setProperty('--side', cell * columns + 'px');
  style.setProperty('--high', cell * rows + 'px');
  grid.fit(cell);
}
new ResizeObserver(fit).observe($('.um-explore'));
on(window, 'resize', fit);
// What is said stays in sight: where its place is not on the screen, at the bottom of the window.
new IntersectionObserver(([place]) => $('.um-status').classList.toggle('um-away', !place.isIntersecting), { rootMargin: '0px 0px -56px' }).observe($('.um-status-place'));
new MutationObserver(() => grid.redraw()).observe(document.body, { attributes: true, attributeFilter: ['class'] });
Object.assign(window.unmask, { state, grid, client, shown: () => shown, mask: () => Array.from(grid.hidden).join('') });
on(document, 'unmask:present', () => {
  element.querySelector('.um-explore').style.removeProperty('--side'); // the room beside each other is measured by it
  fit();
});
function nameGrid() { $('.um-grid').setAttribute('aria-label', words('grid.label', { r: rows, c: columns })); }
/** Everything that is said, said in the language that is on. */
function speak() {
  words.fill(element); nameSamples(); nameGrid(); offerViews(); say('');
  $('.um-grid').setAttribute('aria-roledescription', words('grid.role'));
  $('#um-right-title').textContent = words(state.holding ? 'explore.right_original' : 'explore.right');
  status(...told); controls(); renderRight();
}
document.addEventListener('unmask:language', speak);
async function start() {
  const wanted = new URLSearchParams(location.search).get('model'), models = wanted ? await store.models() : [model];
  if (wanted && models.some(({ name }) => name === wanted)) {
    status('status.loading');
    model = await store.describe(wanted).catch(() => { unchosen = true; return store.state.model; });
    status('');
    store.set({ model });
    reshape(model.grid, model.image_size, model.image_size);
  }
  const sample = readAddress(models);
  fit(); speak();
  if (sample) offerSample(sample);
}
store.set({ samples: props.samples });
$('.um-seed').max = String(props.limits.seed);
fit(); speak(); start();
