// The Compare tab: rows of pictures with one thing varied. Every row is a list of requests to the public API.
// All compare*.js files run as one function body with `element` (this tab) and `props` (words).
const words = wordsOf(props.words);
const $ = (selector) => element.querySelector(selector);

// --- the parts that all rows have ------------------------------------------------------------------------------
/** Around a row's own controls, the first of its children: heading above; button, figure and options below. */
function dress(section) {
  const [heading, run, figure, options] = $('.um-row-parts').content.cloneNode(true).children;
  const [title, text] = heading.children, controls = [...section.querySelectorAll(':scope > .um-before')];
  section.id = 'um-compare-' + section.dataset.row; title.id = section.id + '-title';
  title.dataset.t = section.dataset.heading; text.dataset.t = section.dataset.lead;
  section.setAttribute('aria-labelledby', title.id);
  section.prepend(heading, ...controls, run, figure, options);
}
element.querySelectorAll('[data-row]').forEach(dress);

/** What every row begins with: the picture, mask rule, model and view of Explore. */
function base() {
  const { fields } = store.state, rule = { strategy: 'random', ratio: '0.75', seed: '7' };
  const kept = Object.fromEntries(['model', 'view', 'fit', 'seed'].filter((key) => key in fields).map((key) => [key, fields[key]]));
  return { ...rule, ...kept, ...(fields.ratio ? { strategy: fields.strategy, ratio: fields.ratio } : {}) };
}
/** The crop of Explore was made already; on a whole picture it lies on the grid it has. */
function sent(fields) {
  const { mask } = store.state;
  return fields.fit === 'whole' && mask ? { ...fields, grid: `${mask.rows}x${mask.columns}` } : fields;
}

/** A job for a model by name: it makes its own crop of the file, on Explore's grid where that is no square, and is shown by its own first view, which is honest. */
function byModel(name, { view, ...fields }) {
  const { picture, fields: { crop } } = store.state;
  return { blob: picture && picture.source, fields: sent({ ...fields, ...(crop ? { crop } : {}), model: name }), model: name };
}

// --- tiles ---------------------------------------------------------------------------------------------------
/** Says something in an element, '' for nothing; and again when the language changes. What is counted down or up is spoken once. */
function teller(node) {
  let told = [''];
  const tell = (key, values = {}) => {
    node.ariaLive = key && key === told[0] ? 'off' : null;
    told = [key, values]; node.textContent = key && words(key, values);
  };
  document.addEventListener('unmask:language', () => tell(...told));
  return tell;
}
/** The place of a picture that is not there yet, in the shape that it will have. */
function placeholder() {
  const { fields, mask } = store.state, node = make('div', 'um-empty');
  if (fields.fit === 'whole' && mask) node.style.aspectRatio = `${mask.columns} / ${mask.rows}`;
  return node;
}
/** A picture with what is to be said of it, a line each. */
function tile(image, alt, caption = '', ...notes) {
  const figure = make('figure', 'um-tile');
  if (image) { image.alt = alt; figure.append(image); } else figure.append(placeholder());
  const lines = [caption && make('b', '', caption), ...notes.map((note) => note && make('span', '', note))].filter(Boolean);
  if (lines.length) { const line = make('figcaption'); line.append(...lines); figure.append(line); }
  return figure;
}
const errorOf = (answer) => words('compare.error', { e: errorText(words, answer) });
const titleOf = (picture) => words.title(picture || { sample: '', title: '' });
/** What a job differs in from the others of its row. */
const nameOf = ({ title, model }) => (title ? titleOf(title) : model?.name ?? model);
const strategyName = (name) => words('strategy.' + (name === 'indices' ? 'draw' : name));
function maskedAlt({ answer }, title) {
  return words('compare.alt_masked', { title, k: answer.hidden.length, n: answer.grid[0] * answer.grid[1], strategy: strategyName(answer.strategy) });
}
function resultAlt({ answer }, title) { return words('compare.alt_result', { title, model: answer.model, e: errorText(words, answer) }); }

/** How often the network runs for one request. */
const costOf = ({ cover, samples }) => (cover === 'complete' ? 4 : cover === 'ensemble' ? Number(samples) : 1);

/** Asks for a job. A photo that the server does not take is sent as the browser draws it; where an ensemble is too much work, so is it, and the job says so. */
async function askWithin(job, blob, options) {
  try {
    return await askFigure(job.sent, blob, options);
  } catch (error) {
    if ([413, 415].includes(error.status) && !job.redrawn) {
      const redrawn = await shrunk(blob).catch(() => null);
      if (redrawn) { job.redrawn = true; return askWithin(job, redrawn, options); }
      job.heic = await isHeic(blob);
    }
    const samples = Number(job.fields.samples);
    if (!(samples > 2) || problemType(error.problem) !== 'too-much-work') throw error;
    for (const key of ['fields', 'sent']) job[key] = { ...job[key], samples: String(samples / 2) };
    return askWithin(job, blob, options);
  }
}

// --- a row -----------------------------------------------------------------------------------------------------
let meanMs = 0; // of a request, over all rows: for the estimate
function took(ms) { meanMs = meanMs ? 0.7 * meanMs + 0.3 * ms : ms; }
/** How long so many requests will take, in words; '' for less than a second, and before the first. */
function leftOf(requests) {
  const seconds = Math.ceil((meanMs * requests) / 1000);
  return seconds > 1 ? words('compare.left', { s: seconds }) : '';
}

const { modelShown } = store;
/** What Explore shows, as a row is asked with it; drawn: its mask, where a rule did not make it. */
const shownNow = () => ({ picture: store.state.picture, model: modelShown(), fields: { ...base(), crop: store.state.fields.crop, drawn: store.state.fields.indices } });
/** Whether two are of one picture: an example is fetched anew each time, a file of one's own is the same file. */
const samePicture = (a, b) => Boolean(a && b) && (a.sample || a.source) === (b.sample || b.source);

/**
 * One section: its button, progress, figure and the options that reproduce it.
 *
 * @param name  Of the section.
 * @param jobs  () -> [{fields, blob, title}]; blob null for the picture of Explore.
 * @param uses  Names of Explore's fields, as of shownNow, that its jobs are made with: where one changes, the row is told to be old.
 * @param paint (results, jobs, of) -> nodes of the figure; results[i] is undefined until it is there; of: {picture,
 *              model} that Explore had when the row was asked, which is what its pictures are of.
 * @param after (results, jobs, of): what else is to be said; of is Explore's own until the row was asked.
 * @param own    Its pictures are not Explore's.
 * @param before ({signal, waiting}) -> promise of what its jobs still need.
 */
function createRow(name, { jobs, uses, paint, after = () => {}, own = false, before = () => {} }) {
  const section = $('.um-row-' + name), one = (selector) => section.querySelector(selector);
  const go = one('.um-go'), halt = one('.um-halt'), line = one('.um-progress'), figure = one('.um-figure');
  let running = null, asked = [], results = [], of = null, said = ['', {}];

  function isStale() {
    const now = shownNow();
    return now.model.name !== of.model.name || uses.some((key) => now.fields[key] !== of.fields[key]) || !(own || samePicture(now.picture, of.picture));
  }

  function tell(key, values = {}) {
    line.ariaLive = key && key === said[0] ? 'off' : null; // spoken once, not each second
    said = [key, values]; line.textContent = key && words(key, values);
  }
  function draw() {
    const wanted = jobs().reduce((sum, { fields }) => sum + costOf(fields), 0);
    go.textContent = words('compare.run', { c: wanted });
    const focused = document.activeElement; // a button that goes hands the focus to the one that comes
    go.disabled = Boolean(running) || !wanted || !store.state.picture;
    halt.hidden = !running;
    if (focused === go && running) halt.focus(); else if (focused === halt && !running) go.focus();
    tell(...said);
    figure.replaceChildren(...(of ? paint(results, asked, of) : []));
    one('.um-options').hidden = !asked.length;
    one('pre').textContent = asked.map(({ fields }) => new URLSearchParams(fields).toString().replaceAll('%2C', ',')).join('\n');
    after(results, asked, of || shownNow());
  }
  async function run() {
    if (running) running.abort('replaced');
    const stop = (running = new AbortController()), { picture } = store.state;
    const waiting = (state, s) => tell('status.' + state, { s: Math.ceil(s) });
    const options = { signal: stop.signal, waiting, tries: Infinity }; // after an outage a row goes on by itself; a press stops it
    draw();
    await before(options);
    if (stop !== running) return;
    results = []; of = shownNow();
    asked = jobs().map((job) => ({ ...job, sent: job.blob ? job.fields : sent(job.fields) })); // now: Explore may go on meanwhile
    tell('', {}); draw();
    for (let i = 0; i < asked.length && !stop.signal.aborted; i++) {
      const { blob } = asked[i], began = performance.now();
      if (own && !blob) { results[i] = null; continue; }
      tell('compare.progress', { i: i + 1, n: asked.length, left: leftOf(asked.length - i) });
      try {
        const queue = (line) => tell('compare.progress', { i: i + 1, n: asked.length, left: (line.before && queueWords(words, line)) || leftOf(asked.length - i) || queueWords(words, line) });
        results[i] = await askWithin(asked[i], blob || picture.blob, { ...options, queue });
        took(performance.now() - began);
        if (stop === running) draw();
      } catch (error) {
        if (stop.signal.aborted) break;
        results[i] = null;
        tell(...failureOf(error));
        if (!blob) { running = null; draw(); return; } // the others would fail alike
      }
    }
    if (stop !== running) return;
    running = null;
    const failed = asked.filter((_, i) => results[i] === null).map(nameOf);
    if (stop.signal.aborted) tell('compare.stopped');
    else if (failed.length) tell('compare.some_failed', { k: failed.length, n: asked.length, names: failed.join(words('compare.and')) });
    else tell(isStale() ? 'compare.stale' : '');
    draw();
  }
  go.addEventListener('click', run);
  halt.addEventListener('click', () => { if (running) running.abort('stopped'); });
  document.addEventListener('unmask:language', draw);
  store.watch(() => {
    if (!running && results.length) {
      if (isStale()) said = ['compare.stale', {}]; else if (said[0] === 'compare.stale') said = ['', {}];
    }
    draw();
  }, section);
  return { run, draw, get results() { return results; } };
}

// --- jumping -----------------------------------------------------------------------------------------------------
function jump(target, behavior) {
  target.scrollIntoView({ behavior });
  const heading = target.querySelector('h2');
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
}
for (const link of element.querySelectorAll('.um-jumps a')) {
  link.addEventListener('click', (event) => { // the address keeps what it says of the view
    event.preventDefault();
    jump(element.querySelector(link.getAttribute('href')), matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth');
  });
}
