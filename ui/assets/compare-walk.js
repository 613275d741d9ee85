// --- the walk from 10 to 95 %: frames to play, to scrub and to keep as one moving picture --------------------------------
const STEPS = Array.from({ length: 18 }, (_, i) => 10 + 5 * i), STEP_MS = 400;
const stage = $('.um-walk-picture'), stageContext = stage.getContext('2d', { alpha: false });
const tellWalk = teller($('.um-walk-progress'));
let frames = [], walking = null, playing = 0, at = 0;

/** Masked left, filled in right, below the share in words and as a bar. */
function drawFrame(i) {
  const { answer, images } = frames[i], { width, height } = fitted(images.masked), gap = 8, foot = 32;
  const wide = 2 * width + gap, high = height + foot;
  if (stage.width !== wide || stage.height !== high) { stage.width = wide; stage.height = high; }
  stageContext.fillStyle = '#fff'; stageContext.fillRect(0, 0, wide, high);
  stageContext.drawImage(images.masked, 0, 0, width, height);
  stageContext.drawImage(images.pasted, width + gap, 0, width, height);
  stageContext.fillStyle = '#d5d9e0'; stageContext.fillRect(0, height + 8, wide, 4);
  stageContext.fillStyle = '#1b57c9'; stageContext.fillRect(0, height + 8, (wide * answer.hidden.length) / (answer.grid[0] * answer.grid[1]), 4);
  stageContext.fillStyle = '#14181f'; stageContext.font = '14px system-ui, sans-serif';
  stageContext.fillText(frameText(i), 0, high - 4, wide);
}
/** At most 320 pixels high or wide: it is to be sent around. */
function fitted({ naturalWidth, naturalHeight }) {
  const scale = Math.min(1, 320 / Math.max(naturalWidth, naturalHeight));
  return { width: Math.round((naturalWidth * scale) / 2) * 2, height: Math.round((naturalHeight * scale) / 2) * 2 };
}
const frameText = (i) => `${words('compare.hidden', { p: percent(STEPS[i], 0) })} · ${errorOf(frames[i].answer)}`;
function showFrame(i) {
  at = i;
  drawFrame(i);
  $('.um-walk-label').textContent = frameText(i);
  $('.um-walk-range').value = String(i);
  $('.um-walk-range').setAttribute('aria-valuetext', frameText(i));
  stage.setAttribute('aria-label', words('compare.walk_alt', { title: titleOf(store.state.picture), p: percent(STEPS[i], 0) }));
}
function walkWords() {
  $('.um-walk-go').textContent = walking ? words('control.stop') : playing ? words('compare.walk_pause') : words(frames.length === STEPS.length ? 'compare.walk_play' : 'compare.walk_run', { c: STEPS.length - frames.length });
  $('.um-walk-go').disabled = !store.state.picture;
  $('.um-walk-scrub').hidden = $('.um-walk-stage').hidden = !frames.length;
  $('.um-walk-save').hidden = frames.length < STEPS.length || !canSave;
  $('.um-walk-range').max = String(Math.max(1, frames.length - 1));
  if (frames.length) showFrame(Math.min(at, frames.length - 1)); else stage.setAttribute('aria-label', words('alt.empty'));
}
function stopPlaying() { clearInterval(playing); playing = 0; walkWords(); }
function play() {
  if (at >= frames.length - 1) showFrame(0);
  playing = setInterval(() => {
    if (!element.checkVisibility() || at >= frames.length - 1) stopPlaying(); else showFrame(at + 1);
  }, STEP_MS);
  walkWords();
}
/** What is not there yet of the frames: all, or what is left of a walk that was stopped. */
async function gather() {
  const stop = (walking = new AbortController()), { picture } = store.state;
  const requests = STEPS.map((ratio) => sent(atRatio('random', ratio).fields)); // of one model and seed, whatever is chosen meanwhile
  let failure = null;
  for (let i = frames.length; i < STEPS.length; i++) {
    const progress = (left) => tellWalk('compare.progress', { i: i + 1, n: STEPS.length, left });
    progress(leftOf(STEPS.length - i));
    const waiting = (state, s) => progress(words('status.' + state, { s: Math.ceil(s) })), queue = (line) => progress(queueWords(words, line));
    const began = performance.now(), found = await askFigure(requests[i], picture.blob, { signal: stop.signal, waiting, queue, tries: Infinity }).catch((error) => { failure = error; });
    took(performance.now() - began);
    if (!found || stop.signal.aborted) break;
    frames.push(found); at = i; walkWords();
  }
  const whole = frames.length === STEPS.length;
  if (whole) tellWalk(''); else if (stop.signal.aborted) tellWalk('compare.stopped'); else tellWalk(...failureOf(failure));
  walking = null; walkWords();
  if (whole && !matchMedia('(prefers-reduced-motion: reduce)').matches) play();
}
let walked = null; // the picture the frames belong to
$('.um-walk-go').addEventListener('click', () => {
  if (walking) walking.abort('stopped');
  else if (playing) stopPlaying();
  else if (frames.length === STEPS.length) play();
  else gather();
});
$('.um-walk-range').addEventListener('input', (event) => { if (playing) stopPlaying(); showFrame(Number(event.target.value)); });
store.watch(({ picture, model }) => {
  const now = picture && `${picture.title} ${model.name} ${base().seed} ${base().view} ${picture.blob.size}`;
  if (walked !== now) { // the frames would be another picture's
    if (walking) walking.abort('replaced');
    frames = [];
    if (playing) stopPlaying();
  }
  walked = now;
  walkWords();
}, $('.um-walk'));
document.addEventListener('unmask:language', walkWords);

// --- one file of them: animated WebP -----------------------------------------------------------------------------------------
function chunk(name, payload) {
  const padded = new Uint8Array(8 + payload.length + (payload.length & 1));
  padded.set(letters(name)); padded.set(bytesOf(payload.length, 4), 4); padded.set(payload, 8);
  return padded;
}
/** The picture data of a still WebP: its chunk VP8 or VP8L, head and padding included; null for another format. */
function stillData(bytes) {
  const name = (from) => String.fromCharCode(...bytes.subarray(from, from + 4));
  if (name(0) !== 'RIFF' || name(8) !== 'WEBP') return null;
  for (let at = 12; at + 8 <= bytes.length;) {
    const size = bytes[at + 4] | (bytes[at + 5] << 8) | (bytes[at + 6] << 16) | (bytes[at + 7] << 24), end = at + 8 + size + (size & 1);
    if (name(at) === 'VP8 ' || name(at) === 'VP8L') return bytes.subarray(at, end);
    at = end;
  }
  return null;
}
/** Stills of one size, each with how long it stays, as one animated WebP that goes on for ever, labelled. */
function animated(stills, width, height) {
  const size = [...bytesOf(width - 1, 3), ...bytesOf(height - 1, 3)];
  const parts = [chunk('VP8X', [2 + 4, 0, 0, 0, ...size]), chunk('ANIM', [255, 255, 255, 255, 0, 0])];
  for (const { data, ms } of stills) parts.push(chunk('ANMF', joined([Uint8Array.from([0, 0, 0, 0, 0, 0, ...size, ...bytesOf(ms, 3), 2]), data])));
  parts.push(chunk('XMP ', xmp()));
  const body = joined(parts);
  return new Blob([joined([Uint8Array.from([...letters('RIFF'), ...bytesOf(body.length + 4, 4), ...letters('WEBP')]), body])], { type: 'image/webp' });
}
const canSave = (() => { const probe = document.createElement('canvas'); probe.width = probe.height = 1; return probe.toDataURL('image/webp').startsWith('data:image/webp'); })();
$('.um-walk-save').addEventListener('click', async () => {
  if (playing) stopPlaying();
  const shown = at, stills = [];
  for (let i = 0; i < frames.length; i++) {
    drawFrame(i);
    const blob = await new Promise((resolve) => stage.toBlob(resolve, 'image/webp', 0.85));
    const data = stillData(new Uint8Array(await blob.arrayBuffer()));
    if (data) stills.push({ data, ms: i === frames.length - 1 ? 1600 : STEP_MS });
  }
  showFrame(shown);
  save(animated(stills, stage.width, stage.height), 'unmask-10-to-95.webp');
});

// --- the first visit ----------------------------------------------------------------------------------------------------------
let visited = false;
store.watch(({ result }) => {
  if (!result || visited) return;
  visited = true;
  ratios.run();
  const row = document.getElementById(location.hash.slice(1)); // the address of one of the rows
  if (row && row.matches('.um-compare [data-row]')) jump(row, 'auto');
}, element.firstElementChild);
document.addEventListener('unmask:language', () => words.fill(element));
words.fill(element);
