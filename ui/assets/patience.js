// Patience with a server that is busy or away, for every kind of request.

/** Seconds of a Retry-After header, which is a number or a date. */
function retryAfter(header) {
  const seconds = Number(header);
  const wanted = header && Number.isFinite(seconds) ? seconds : (Date.parse(header) - Date.now()) / 1000;
  return Math.min(60, Math.max(1, Number.isFinite(wanted) ? wanted : 1));
}
/** Waits; ends early when the signal says so. */
const pause = (ms, signal) => new Promise((resolve, reject) => {
  const stop = () => { clearTimeout(timer); reject(signal.reason); };
  const timer = setTimeout(() => { signal?.removeEventListener('abort', stop); resolve(); }, ms);
  signal?.addEventListener('abort', stop, { once: true });
});
/** The problem that a response tells of, {} where it tells of none. */
const problemOf = (response, signal) => response.json().catch(() => { signal?.throwIfAborted(); return {}; });
/** Which problem: the last part of its type. */
const problemType = (problem) => String(problem?.type || '').split(':').pop();
/**
 * Asks until the server has time: its response, which is a good one.
 *
 * @param ask     () -> promise of a response.
 * @param options signal to stop; waiting(state, seconds), each second while it must: 'busy', 'limited' (this visitor sent
 *                too much), 'loading' (a model) or 'away'; tries: how often one that is away is asked again.
 * Throws {status, problem} where the server refuses, status 0 where it stays away, the signal's reason where it was stopped.
 */
async function patiently(ask, { signal, waiting = () => {}, tries: most = 5 } = {}) {
  for (let tries = 0; ; tries++) {
    signal?.throwIfAborted();
    const response = await ask().catch(() => { signal?.throwIfAborted(); return null; });
    if (response && response.ok) return response;
    const problem = response ? await problemOf(response, signal) : {}, type = problemType(problem), away = !response || response.status === 502;
    // A model that cannot be had has the status of a busy server, and no waiting brings it.
    const busy = response && [429, 503].includes(response.status) && type !== 'model-unavailable';
    if (!(busy || away) || tries >= (busy ? Math.max(30, most) : most)) throw { status: away ? 0 : response.status, problem };
    const state = !busy ? 'away' : response.status === 429 ? 'limited' : type === 'model-loading' ? 'loading' : 'busy';
    const seconds = busy ? retryAfter(response.headers.get('retry-after')) : Math.min(8, 2 ** tries);
    for (let left = seconds; left > 0; left -= 1) {
      waiting(state, Math.ceil(left));
      await pause(1000 * Math.min(1, left), signal);
    }
  }
}
/** What to say when it came to nothing: a key of the words and its values. */
function failureOf({ status, problem }) {
  return ['status.' + (!status ? 'gone' : status === 504 ? 'too_long' : 'refused'), { reason: String(problem?.detail || status) }];
}
