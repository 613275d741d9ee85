// A weight file of the visitor's: what it is, by its head. The file stays where it is, and nothing of it is run.
const MOST_HEAD = 256 * 1024; // bytes that the service reads: the head of the largest model of this kind has a third of it
let openings = 0; // files chosen so far: what comes late of an earlier one is dropped
let opened = { key: '', name: '' }; // what is told: words, and where there are, report, reason or command

/** The first bytes of a safetensors file, its whole head among them; what to say where there is none to send. */
async function headOf(file) {
  const first = new Uint8Array(await file.slice(0, 9).arrayBuffer());
  if (first.length < 9 || first[8] !== 123) return 'use.open_pickle'; // eight bytes of length, then {
  const length = new DataView(first.buffer).getBigUint64(0, true);
  return length > BigInt(MOST_HEAD - 8) ? 'use.open_large' : file.slice(0, 8 + Number(length));
}
/** A file's name as an argument: one that begins with a dash is no option. */
const argument = (name) => quoted(name.startsWith('-') ? './' + name : name);

async function open(file) {
  const mine = ++openings, { name } = file, inspect = `.venv/bin/python -m model inspect ${argument(name)}`, head = await headOf(file);
  if (mine !== openings) return;
  if (typeof head === 'string') { tell({ key: head, name, command: inspect }); return; }
  tell({ key: 'use.open_working', name });
  const query = new URLSearchParams({ name: name.slice(0, 200), size: file.size });
  const ask = () => fetch(rootUrl('v1/inspect?' + query), { method: 'POST', body: head, headers: { 'content-type': 'application/octet-stream' } });
  const waiting = (state, s) => { if (mine === openings) tell({ key: 'status.' + state, name, s }); };
  try {
    const found = await (await patiently(ask, { waiting })).json();
    if (mine === openings) tell({ key: 'use.open_done', name, report: found, serve: found.usable_for.includes('serve') && `UNMASK_MODELS=${argument(name)} .venv/bin/python -m server` });
  } catch ({ status, problem }) {
    if (mine === openings) tell(status ? { key: 'use.open_refused', name, reason: String(problem.detail || status) } : { key: 'use.open_offline', name });
  }
}
function tell(what) { opened = what; paintOpened(); }
function paintOpened() {
  const { key, name, s, report: found, reason = '', command, serve } = opened, list = $('.um-use-opened');
  $('.um-use-open-say').textContent = key && words(key, { name, s });
  $('.um-use-open-reason').textContent = reason; $('.um-use-open-reason').hidden = !reason;
  list.hidden = !found;
  if (found) fill(list, [['use.name', found.name, true], ['use.parameters', number(found.parameters, 0)], ...factsOf(found, shapeOf(found))]);
  $('.um-use-command').hidden = !(command || serve);
  $('.um-use-command-lead').hidden = !serve;
  $('.um-use-command-line').textContent = serve || command || '';
}
function shapeOf({ size, size_bytes: bytes, config }) {
  const sizes = [['use.file_size', words('use.megabytes', { x: number(bytes / 1e6) })], ['use.shape', size || words('use.shape_none'), Boolean(size)]];
  if (!config) return sizes;
  const cells = config.image_size / config.patch_size;
  const blocks = (d, w, h) => d && words('use.blocks', { d, w, h });
  return [
    ...sizes, ['use.sees', words('use.sees_value', { s: config.image_size, r: cells, c: cells, p: config.patch_size })],
    ['use.encoder', blocks(config.depth, config.width, config.heads)],
    ['use.decoder', blocks(config.decoder_depth, config.decoder_width, config.decoder_heads)],
  ];
}
$('.um-use-file').addEventListener('change', (event) => { if (event.target.files[0]) open(event.target.files[0]); event.target.value = ''; });
document.addEventListener('unmask:drop', (event) => { // a picture goes to Explore
  const [file] = event.detail;
  if (!element.checkVisibility() || file.type.startsWith('image/')) return;
  event.preventDefault();
  open(file);
  $('.um-use-open').scrollIntoView();
});
$('.um-use-copy-command').addEventListener('click', (event) => copy($('.um-use-command-line').textContent, event.target));
