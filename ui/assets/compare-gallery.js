// --- triptychs: Figs. 2 and 3 --------------------------------------------------------------------------------------
let galleryRatio = 80, files = [];
const LIMIT = 24; // pictures of one sheet
const loaded = new Map(); // sample -> its file

function galleryJobs() {
  const { view, fit, ...rest } = base();
  const fields = { ...rest, strategy: 'random', ratio: (galleryRatio / 100).toFixed(2), panels: 'masked,reconstruction,original' };
  const ofPicture = (i) => ({ ...fields, seed: String((Number(fields.seed) + i) % (props.limits.seed + 1)) });
  // A file that says itself that it is no picture is not sent; its row tells so.
  if (files.length) return files.map((file, i) => ({ fields: ofPicture(i), blob: !file.type || file.type.startsWith('image/') ? file : null, title: { sample: '', title: file.name } }));
  return store.state.samples.map((sample, i) => ({ fields: ofPicture(i), blob: loaded.get(sample.name), title: { sample: sample.name, title: sample.title } }));
}
const gallery = createRow('gallery', {
  jobs: galleryJobs, own: true, uses: ['seed'], before: (options) => loadSamples(options),
  paint: (results, asked) => asked.map(({ title, heic }, i) => {
    const found = results[i], name = titleOf(title), row = make('figure', 'um-triptych');
    const pictures = make('div', 'um-triptych-row');
    const alts = { masked: found && maskedAlt(found, name), reconstruction: found && resultAlt(found, name), original: words('alt.original', { title: name }) };
    for (const panel of ['masked', 'reconstruction', 'original']) pictures.append(found ? tile(found.images[panel], alts[panel] || '') : make('div', 'um-empty'));
    row.append(pictures, make('figcaption', '', found === null ? words(heic ? 'compare.unreadable_heic' : 'compare.unreadable', { name }) : found ? `${name} · ${errorOf(found.answer)}` : name));
    return row;
  }),
  after: (results) => { $('.um-sheet').hidden = !results.some(Boolean); },
});
/** The samples' own files: three numbers of a picture are worth more than its 144 pixel preview. */
async function loadSamples(options) {
  if (files.length) return;
  await Promise.all(store.state.samples.filter(({ name }) => !loaded.has(name)).map(async ({ name }) => {
    const response = await patiently(() => fetch(rootUrl('v1/samples/' + encodeURIComponent(name))), options).catch(() => null);
    if (response) loaded.set(name, await response.blob());
  }));
}
function runGallery(ratio) { galleryRatio = ratio; gallery.run(); }
$('.um-preset-fig2').addEventListener('click', () => runGallery(80));
$('.um-preset-fig10').addEventListener('click', () => runGallery(75));
const tellLeftOut = teller($('.um-left-out'));
function takeFiles(list) {
  files = [...list].slice(0, LIMIT);
  tellLeftOut(list.length > LIMIT ? 'compare.left_out' : '', { n: LIMIT, all: list.length });
  $('.um-samples-again').hidden = !files.length;
  if (files.length) gallery.run();
}
$('.um-files .um-file').addEventListener('change', (event) => { takeFiles(event.target.files); event.target.value = ''; });
$('.um-samples-again').addEventListener('click', () => { takeFiles([]); runGallery(galleryRatio); });
const section = $('.um-row-gallery');
section.addEventListener('dragover', () => section.classList.add('um-over'));
section.addEventListener('dragleave', (event) => { if (!section.contains(event.relatedTarget)) section.classList.remove('um-over'); });
document.addEventListener('unmask:drop', (event) => { // anywhere on this tab
  if (!element.checkVisibility()) return;
  event.preventDefault();
  section.classList.remove('um-over');
  takeFiles(event.detail);
  jump(section, 'auto');
});

/** All triptychs on one sheet, two beside each other, and below what they are. */
function drawSheet() {
  const found = gallery.results.filter(Boolean), side = 224, gap = 8, two = found.length > 1 ? 2 : 1;
  const wide = 3 * side + 2 * gap, lines = Math.ceil(found.length / two), sheet = document.createElement('canvas');
  sheet.width = two * wide + (two - 1) * 4 * gap + 4 * gap;
  sheet.height = lines * (side + 2 * gap) + 2 * gap + 40;
  const context = sheet.getContext('2d');
  context.fillStyle = '#fff'; context.fillRect(0, 0, sheet.width, sheet.height);
  found.forEach(({ images }, i) => {
    const x = 2 * gap + (i % two) * (wide + 4 * gap), y = 2 * gap + Math.floor(i / two) * (side + 2 * gap);
    ['masked', 'reconstruction', 'original'].forEach((panel, p) => context.drawImage(images[panel], x + p * (side + gap), y, side, side));
  });
  const { answer } = found[0];
  context.fillStyle = '#515a67'; context.font = '15px system-ui, sans-serif';
  context.fillText(words('compare.sheet_note', { model: answer.model, p: percent(galleryRatio, 0), seed: String(answer.seed) }), 2 * gap, sheet.height - 20, sheet.width - 4 * gap);
  return sheet;
}
$('.um-sheet').addEventListener('click', () => drawSheet().toBlob(async (blob) => save(await labelledPng(blob), `unmask-sheet-${galleryRatio}.png`), 'image/png'));
