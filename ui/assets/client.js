// The line to the server: one request under way, the newest mask wins; and what the tabs do alike with an answer.

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode(); // before it is shown: frames replace each other without a flicker
  return image;
}
/** An answer to a reconstruction, its pictures decoded: {answer, images}, images by panel. */
async function readAnswer(response) {
  const answer = await response.json(), images = {};
  await Promise.all(Object.entries(answer.images).map(async ([panel, data]) => { images[panel] = await decoded(data); }));
  return { answer, images };
}
/** A figure as text, with the name of the view where that is no honest one: it must not be held against others. */
const ofView = (words, text, { view }) => (['normalised', 'oracle'].includes(view) ? words('figure.' + view, { text }) : text);
/** The average colour error of an answer on its hidden patches, as text. */
const errorText = (words, answer) => ofView(words, percent(answer.metrics.colour_error_percent), answer);
/** Mean absolute colour error of every patch, row by row, in percent of the full range, from two pictures of one size. */
function patchErrors(original, reconstruction, rows, columns) {
  const { naturalWidth: w, naturalHeight: h } = original;
  const read = (image) => { const sheet = new OffscreenCanvas(w, h).getContext('2d'); sheet.drawImage(image, 0, 0, w, h); return sheet.getImageData(0, 0, w, h).data; };
  const a = read(original), b = read(reconstruction), sums = new Float64Array(rows * columns), high = h / rows, wide = w / columns;
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const at = (y * w + x) * 4;
    sums[Math.floor(y / high) * columns + Math.floor(x / wide)] += Math.abs(a[at] - b[at]) + Math.abs(a[at + 1] - b[at + 1]) + Math.abs(a[at + 2] - b[at + 2]);
  }
  return sums.map((sum) => (sum / 3 / 255 / (high * wide)) * 100);
}
const SMALLER = 4096; // pixels of the longer side
/** Whether a file is a HEIC photo, as iPhones take them, whatever it is called: of all browsers Safari alone opens it. */
const isHeic = async (file) => /^ftyp(hei|hev|mif1|msf1)/.test(await file.slice(4, 12).text());
/** As a JPEG, and not larger than needed: a photo over the server's limits, or of a format that only the browser reads. Throws where it does not. */
async function shrunk(file) {
  const whole = await createImageBitmap(file, { imageOrientation: 'from-image' });
  const scale = Math.min(1, SMALLER / Math.max(whole.width, whole.height)), sheet = document.createElement('canvas');
  sheet.width = Math.round(whole.width * scale); sheet.height = Math.round(whole.height * scale);
  const context = sheet.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.fillStyle = '#fff'; context.fillRect(0, 0, sheet.width, sheet.height); // JPEG knows nothing transparent
  context.drawImage(whole, 0, 0, sheet.width, sheet.height);
  whole.close();
  return new Promise((resolve) => { sheet.toBlob(resolve, 'image/jpeg', 0.95); });
}
/** Hands a file to the visitor. */
function save(blob, name) {
  const link = document.createElement('a');
  link.download = name; link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** An id for a request of ours, by which the server finds its place in the line. */
const requestId = () => 'page-' + Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, '0')).join('');
/**
 * Asks how it stands with a request, each second after its first: tell({before, seconds}) of the requests before it and
 * of the time that they and it will take; 0 seconds where the server knows no pace yet. Gives what ends the asking.
 */
function watchQueue(id, tell) {
  let over = false, timer = setTimeout(look, 1000);
  async function look() {
    const found = await fetch(rootUrl('v1/queue?request=' + id)).then((r) => (r.ok ? r.json() : null), () => null);
    if (over) return;
    if (found && found.before !== null) tell({ before: found.before, seconds: Math.ceil(found.estimate_ms / 1000) });
    timer = setTimeout(look, 1000);
  }
  return () => { over = true; clearTimeout(timer); };
}
/** That in words, '' where there is nothing to tell. */
function queueWords(words, { before, seconds }) {
  if (before) return words(seconds ? 'status.queue' : 'status.queue_only', { n: before, s: seconds });
  return seconds > 1 ? words('status.about', { s: seconds }) : '';
}

/**
 * @param url    Where to post.
 * @param next   () -> {body: FormData, ...} for the newest state, or null when there is nothing to ask.
 * @param accept (job, answer, images) for a result; refuse(job, status, problem) for a request that is wrong.
 * @param report (state, seconds): 'bar' after 300 ms, 'slow' after 2 s, 'idle', 'busy', 'limited' (this visitor sent
 *               too much), 'loading', 'offline', 'failed', 'timeout', 'stopped'; 'queue' with what watchQueue tells in place of the seconds.
 */
function createClient({ url, next, accept, refuse, report }) {
  const LIMIT_MS = 30000;
  let running = null, dirty = false, waiting = 0, failures = 0;

  /** Counts down, and says so each second, whatever else is said meanwhile. */
  function later(state, seconds) {
    const until = performance.now() + seconds * 1000 * (1 + Math.random() / 4); // spread, so that many pages do not come back at once
    clearTimeout(waiting);
    (function tick() {
      const left = (until - performance.now()) / 1000;
      if (left <= 0) { wake(); return; }
      waiting = setTimeout(tick, 1000 * Math.min(1, left));
      report(state, Math.ceil(left));
    })();
  }
  function wake() { clearTimeout(waiting); waiting = 0; pump(); }
  async function pump() {
    if (running || waiting) { dirty = true; return; }
    for (let again = true; again && !waiting; again = dirty) {
      dirty = false;
      const job = next();
      if (!job) break;
      await send(job);
    }
  }
  async function send(job) {
    const stop = new AbortController(), id = requestId(), unwatch = watchQueue(id, (line) => report('queue', line));
    running = stop;
    const limit = job.incoming ? 3 * LIMIT_MS : LIMIT_MS; // a file as it was given: it has a minute to arrive, and is worked on after that
    const timers = [[300, () => report('bar')], [2000, () => report('slow')], [limit, () => stop.abort('timeout')]].map(([ms, run]) => setTimeout(run, ms));
    let arrived = null;
    try {
      arrived = await ask(job, id, stop.signal);
    } catch {
      if (!stop.signal.aborted) later('offline', Math.min(8, 2 ** failures++));
      else if (stop.signal.reason !== 'replaced') report(stop.signal.reason);
    } finally {
      timers.forEach(clearTimeout); unwatch();
      running = null;
    }
    if (!arrived || stop.signal.aborted) return;
    if (arrived.answer) { failures = 0; report('idle'); accept(job, arrived.answer, arrived.images); }
  }
  async function ask(job, id, signal) {
    job.body.set('picture_format', 'webp'); // the same pixels in fewer bytes
    const response = await fetch(url, { method: 'POST', body: job.body, headers: { accept: 'application/json', 'x-request-id': id }, signal });
    if (response.ok) return readAnswer(response);
    const problem = await problemOf(response, signal), type = problemType(problem), seconds = retryAfter(response.headers.get('retry-after'));
    if (type === 'model-unavailable') { report('idle'); refuse(job, response.status, problem); } // no waiting brings it
    else if (response.status === 429) later('limited', seconds);
    else if (response.status === 503) {
      const ready = type !== 'model-loading' && await fetch(rootUrl('readyz'), { signal }).then((r) => r.ok, () => false);
      if (ready) later('busy', seconds); else later('loading', 2);
    } else if (response.status === 502) later('offline', Math.min(8, 2 ** failures++));
    else if (response.status === 504) report('timeout'); // the same request would take as long again
    else if (response.status >= 500) report('failed');
    else { report('idle'); refuse(job, response.status, problem); }
    return {};
  }
  addEventListener('online', () => { if (waiting) wake(); });
  return {
    pump, again: wake,
    get idle() { return !running && !waiting && !dirty; },
    get waits() { return Boolean(waiting); },
    /** Another picture: the answer under way is for the old one. */
    replace() { if (running) running.abort('replaced'); pump(); },
    stop() { if (running) running.abort('stopped'); },
  };
}

// Figures take turns, those of all tabs together: one request of them at a time, so that they do not fill the server's
// queue by themselves. Every tab has this file as its own, so the turn is kept where they meet.
window.unmask.turn ||= Promise.resolve();
/**
 * One request of a figure: {answer, images}. Waits for its turn, and while the server is busy or away.
 *
 * @param fields  The API's form fields, as strings, panels among them.
 * @param blob    The picture.
 * @param options signal, waiting and tries as of patiently, which also says what is thrown; queue(line) as watchQueue tells.
 */
function askFigure(fields, blob, options = {}) {
  const mine = window.unmask.turn.then(() => askPatiently({ ...fields, picture_format: 'webp' }, blob, options)).then(readAnswer);
  window.unmask.turn = mine.catch(() => {});
  return mine;
}
/** The same without a turn, for an answer of any kind: its response. */
function askPatiently(fields, blob, { accept = 'application/json', queue = () => {}, ...patience }) {
  return patiently(() => {
    const body = new FormData();
    body.append('image', blob, 'picture');
    for (const [key, value] of Object.entries(fields)) body.append(key, value);
    const id = requestId(), unwatch = watchQueue(id, queue), headers = { accept, 'x-request-id': id };
    return fetch(rootUrl('v1/reconstruct'), { method: 'POST', body, headers, signal: patience.signal }).finally(unwatch);
  }, patience);
}
