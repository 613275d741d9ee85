// The Use it tab: the request on screen as code, as a link, and what the model is. Body of a function with `element`, `props`.
const words = wordsOf(props.words);
const $ = (selector) => element.querySelector(selector);
let way = 'curl', report = null, reported = '', keyed = false;

const code = () => PROGRAMS[way](neededFor(store.state, keyed));
/** The browser sends a visitor's key by itself and tells nobody, so the service is asked without one. */
async function askForKey() {
  const response = await fetch(rootUrl('v1/info'), { credentials: 'omit' });
  keyed = response.status === 401 && String((await response.json()).type).endsWith('unauthorised');
  if (keyed) paint();
}
function paint() {
  const { picture, fields, mask } = store.state, model = store.modelShown(), drawn = fields.strategy === 'indices';
  words.fill(element);
  if (!picture || !fields.strategy) { $('.um-use-now').textContent = words('use.loading'); return; }
  const title = words.title(picture), n = mask ? mask.rows * mask.columns : 0, k = mask ? mask.hidden.length : 0;
  const names = { random: 'use.random', block: 'use.block', grid: 'use.grid', indices: 'use.drawn' };
  words.rich($('.um-use-now'), drawn ? 'use.now_drawn' : 'use.now', {
    title, strategy: words(names[fields.strategy] || 'use.drawn'), k: number(k), n: number(n), seed: fields.seed || '', model: model.name,
  });
  $('.um-use-code').textContent = code();
  $('.um-use-code').setAttribute('aria-label', words('use.code_label'));
  const hints = [picture.sample ? 'use.hint_sample' : 'use.hint_own', keyed && 'use.hint_key', way === 'javascript' && 'use.hint_javascript'];
  $('.um-use-hint').textContent = sentences(hints.map((key) => key && words(key)));
  $('.um-use-docs').href = rootUrl('docs');
  const link = new URL(store.link());
  link.searchParams.delete('tab'); // a link to the view leads to the pictures
  $('.um-use-address').value = link.href;
  $('.um-use-link-hint').textContent = words(picture.sample ? 'use.link_hint' : 'use.link_own');
  card(model); reports(model);
}

// --- the model -----------------------------------------------------------------------------------------------------
/** Fills a list with pairs of a word's key and a value; values that are missing leave no row. Foreign text keeps its language. */
function fill(list, pairs) {
  list.replaceChildren(...pairs.filter(([, value]) => value !== undefined && value !== null && value !== '').flatMap(([key, value, foreign]) => {
    const term = document.createElement('dt'), text = document.createElement('dd');
    term.textContent = words(key); text.textContent = value;
    if (foreign) text.lang = 'en';
    return [term, text];
  }));
}
/** The model whose weights the training began with; one that went on with its own has its name in the recipe. */
function begunFrom({ begun_from: first }) {
  const name = first && (first.name || first.recipe?.name);
  return name && (first.steps ? words('use.begun_value', { name, s: number(first.steps), n: number(first.samples || 0) }) : name);
}
function card(model) {
  const [rows, columns] = model.grid;
  fill($('.um-use-model'), [
    ['use.name', model.name], ['use.parameters', number(model.parameters, 0)],
    ['use.sees', words('use.sees_value', { s: model.image_size, r: rows, c: columns, p: model.patch_size })],
    ['use.encoder', words('use.blocks', { w: model.width, d: model.depth, h: model.heads })],
    ['use.decoder', words('use.blocks', { w: model.decoder_width, d: model.decoder_depth, h: model.decoder_heads })],
    ['use.target', words(model.target.startsWith('norm_pixel') ? 'use.target_normalised' : 'use.target_pixels')],
    masksOf(model), ['use.steps', model.steps && words('use.steps_value', { s: number(model.steps), n: number(model.samples || 0) })],
    ['use.begun', begunFrom(model)],
    ['use.data', model.trained_on, true], ['use.licence', model.licence, true], ['use.digest', model.digest, true],
  ]);
}
/** The row of the masks that a model was trained on; without a recipe, what its card says of them. */
function masksOf(model) {
  const { kinds, hidden } = trainedOn(model), parts = kinds.map(([kind, part]) => `${words('use.' + kind)} ${shareText(part)}`);
  return kinds.length ? ['use.masks', words('use.masks_value', { hidden, parts: parts.join(words('use.and')) })] : ['use.masks', model.strategy, true];
}
async function reports(model) {
  if (reported !== model.name) {
    reported = model.name;
    const found = await fetch(rootUrl('v1/models/' + encodeURIComponent(model.name))).then((r) => (r.ok ? r.json() : null), () => null);
    if (reported !== model.name) return;
    report = (found && found.report) || null;
    if (!found) reported = ''; // asked again when the tab is next painted
  }
  $('.um-use-report-section').hidden = !report;
  if (!report) return;
  // Without torch a service can make none, and says so in a note.
  const facts = () => factsOf(report, [['use.file_size', words('use.megabytes', { x: number(report.size_bytes / 1e6) })]]);
  fill($('.um-use-report'), report.note ? [['use.note', report.note, true]] : facts());
}
const USES = { reconstruct: 'use.for_reconstruct', evaluate: 'use.for_evaluate', serve: 'use.for_serve', convert: 'use.for_convert', classify: 'use.for_classify' };
/** The report on a weight file as pairs for `fill`; what is known of this file alone stands after its content. */
function factsOf(report, further) {
  const contents = { full: 'use.content_full', encoder: 'use.content_encoder', classifier: 'use.content_classifier' };
  const list = (items) => (items.length ? items.join(words('use.and')) : words('use.nothing'));
  return [
    ['use.layout', report.layout, true], ['use.proved', report.proved_against, true], ['use.content', contents[report.content] && words(contents[report.content])], ...further,
    ['use.predicts', report.target && words(report.target === 'pixel' ? 'use.target_pixels' : 'use.target_normalised')], ['use.says', report.target_source, true],
    ['use.usable', list(report.usable_for.map((use) => words(USES[use] || use)))], ['use.missing', list(report.missing)], ['use.left_over', list(report.left_over)],
    ...report.notes.map((note) => ['use.note', note, true]), ['use.advice', report.advice, true],
  ];
}

// --- copying ---------------------------------------------------------------------------------------------------------
async function copy(text, button) {
  const key = await copied(text, button) ? 'use.copied' : 'use.not_copied';
  button.textContent = words(key); $('.um-use-say').textContent = words(key);
  setTimeout(() => { button.textContent = words('use.copy'); $('.um-use-say').textContent = ''; }, 2000);
}
$('.um-use-copy').addEventListener('click', (event) => copy(code(), event.target));
$('.um-use-copy-link').addEventListener('click', (event) => copy($('.um-use-address').value, event.target));
$('.um-use-address').addEventListener('focus', (event) => event.target.select());
$('.um-use-ways').addEventListener('change', (event) => { way = event.target.value; paint(); });

document.addEventListener('unmask:language', () => { paint(); paintOpened(); });
askForKey().catch(() => {}); // nobody answers: the code is that of a service without keys
paint();
store.watch(paint, $('.um-use'));
