// --- how much is hidden: Fig. 4 ---------------------------------------------------------------------------------
let wide = [50, 60, 75, 85, 90, 95];
const MOST_SHARES = 12;
/** "50, 75" or "0.5, 0.75" -> [50, 75]; null where it is anything else than 1 to 12 shares between 1 and 99 %. */
function readShares(text) {
  const values = text.split(/[\s,;%，、；]+/).filter(Boolean).map(Number).map((value) => Math.round(value < 1 ? value * 100 : value));
  return values.length && values.length <= MOST_SHARES && values.every((value) => value >= 1 && value <= 99) ? values : null;
}
const tellBad = teller($('.um-ratios-bad'));
/** What is no list of shares stays as it was typed, marked, with the limits beside it; the row keeps the last one that was. */
function sayShares(found) {
  $('.um-ratios-text').setAttribute('aria-invalid', String(!found));
  tellBad(found ? '' : 'compare.ratios_bad', { n: MOST_SHARES });
}
function pairs(results, asked, { picture }, caption) {
  const title = titleOf(picture);
  return asked.map((job, i) => {
    const found = results[i], pair = make('div', 'um-pair-tile');
    pair.append(
      tile(found && found.images.masked, found ? maskedAlt(found, title) : ''),
      tile(found && found.images.pasted, found ? resultAlt(found, title) : '', ...caption(job, found)),
    );
    return pair;
  });
}
const atRatio = (strategy, ratio) => ({ fields: { ...base(), strategy, ratio: (ratio / 100).toFixed(2), panels: 'masked,pasted' } });
const ratios = createRow('ratios', {
  jobs: () => wide.map((ratio) => atRatio(base().strategy, ratio)),
  uses: ['strategy', 'seed', 'view', 'fit', 'crop'],
  paint: (results, asked, of) => pairs(results, asked, of, ({ fields }, found) => [words('compare.hidden', { p: shareText(fields.ratio) }), found ? errorOf(found.answer) : '']),
});
function choose(values) {
  wide = values;
  $('.um-ratios-text').value = values.join(', ');
  sayShares(values);
  ratios.run();
}
$('.um-preset-wide').addEventListener('click', () => choose([50, 60, 75, 85, 90, 95]));
$('.um-preset-fig4').addEventListener('click', () => choose([75, 85, 95]));
$('.um-ratios-text').addEventListener('change', (event) => {
  const found = readShares(event.target.value);
  sayShares(found);
  if (!found) return;
  wide = found;
  event.target.value = wide.join(', ');
  ratios.draw();
});

// --- which patches are hidden: Fig. 6 ------------------------------------------------------------------------------
const FIGURE_6 = { random: 75, block: 50, grid: 75 };
let shares = FIGURE_6;
/** The one kind of mask that a model was trained on, as 'Block 50%'; '' where there are several, or nobody says. */
function trainedAlone(model) {
  const { kinds, hidden } = trainedOn(model);
  return kinds.length === 1 ? `${strategyName(kinds[0][0])} ${hidden}` : '';
}
/** Of the models served, the first that was trained on this kind of mask alone; the one of Explore comes before all. */
const specialist = (strategy, mine) => [mine, ...store.state.models].find((model) => model.name && trainedAlone(model) && trainedOn(model).kinds[0][0] === strategy);
const strategies = createRow('strategies', {
  jobs: () => Object.entries(shares).flatMap(([strategy, ratio]) => {
    const { fields } = atRatio(strategy, ratio), job = { fields: { ...fields, panels: 'masked,pasted,original' }, model: modelShown() };
    const other = specialist(strategy, job.model);
    return other && other.name !== job.model.name ? [job, { ...byModel(other.name, job.fields), model: other }] : [job];
  }),
  uses: ['seed', 'view', 'fit', 'crop'],
  paint: (results, asked, of) => Object.keys(shares).flatMap((strategy) => {
    const mine = asked.flatMap((job, i) => (job.fields.strategy === strategy ? [{ ...job, found: results[i] }] : []));
    if (!mine.length) return [];
    const [{ fields, found }] = mine, title = titleOf(of.picture), line = make('div', 'um-pair-tile');
    line.append(
      tile(found && found.images.masked, found ? maskedAlt(found, title) : '', `${strategyName(strategy)} ${shareText(fields.ratio)}`),
      ...mine.map(({ model, found: one }) => {
        const alone = specialist(strategy, of.model)?.name === model.name ? words('compare.trained_on_it', { on: trainedAlone(model) }) : '';
        return tile(one && one.images.pasted, one ? resultAlt(one, title) : '', model.name, alone, one && errorOf(one.answer));
      }),
      tile(found && found.images.original, title, words('explore.right_original')),
    );
    return line;
  }),
  after(results, asked, { model }) {
    const { kinds, hidden } = trainedOn(model), mixture = kinds.length > 1;
    const parts = kinds.map(([name, part]) => words('compare.trained_part', { x: shareText(part), strategy: strategyName(name) }));
    const on = mixture ? parts.join(words('compare.and')) : trainedAlone(model) || String(model.strategy || '');
    const told = mixture ? 'compare.trained_mixture' : on ? 'compare.trained' : 'compare.trained_unknown';
    const beside = Object.keys(shares).map((strategy) => specialist(strategy, model)).some((one) => one && one.name !== model.name);
    $('.um-trained').textContent = words(told, { model: model.name || '', on, hidden });
    $('.um-beside').textContent = beside ? words('compare.trained_beside', { model: model.name }) : '';
  },
});
$('.um-preset-fig6').addEventListener('click', () => { shares = FIGURE_6; strategies.run(); });
$('.um-preset-same').addEventListener('click', () => { shares = { random: 75, block: 75, grid: 75 }; strategies.run(); });

// --- two models -------------------------------------------------------------------------------------------------------
const [modelA, modelB] = ['.um-model-a', '.um-model-b'].map($);
let filledFor = '';
/** The lists of models, as far as they are known by now: Explore's and another, until others are chosen. */
function fillModels() {
  const { models: served, model: { name: mine } } = store.state, now = `${mine} ${served.length}`;
  if (filledFor === now) return;
  filledFor = now;
  const other = [modelB.value, ...served.map(({ name }) => name)].find((name) => name && name !== mine);
  for (const list of [modelA, modelB]) list.replaceChildren(...served.map(({ name }) => new Option(name, name)));
  modelA.value = mine;
  modelB.value = other || mine;
}
/** The drawn or drawn-by-rule mask of Explore; where the models' grids differ, the rule draws on each. */
function modelJobs() {
  fillModels();
  const { mask, fields } = store.state;
  if (store.state.models.length < 2 || !mask) return [];
  return [modelA.value, modelB.value].filter(Boolean).map((name) => {
    const rest = base(), model = store.state.models.find((one) => one.name === name);
    const same = model?.grid?.join() === [mask.rows, mask.columns].join() || rest.fit === 'whole';
    const hidden = fields.strategy === 'indices' && same ? { strategy: 'indices', indices: JSON.stringify(mask.hidden) } : rest;
    const { ratio, ...drawn } = { ...rest, ...hidden };
    return byModel(name, { ...drawn, ...(hidden.strategy === 'indices' ? {} : { ratio }), panels: 'masked,pasted,error,original' });
  });
}
const models = createRow('models', {
  jobs: modelJobs,
  uses: ['strategy', 'ratio', 'seed', 'drawn', 'fit', 'crop'],
  paint(results, asked, { picture }) {
    const title = titleOf(picture), first = results.find(Boolean), drawn = ({ answer }) => answer.grid.join('x') + answer.hidden.join();
    const model = ({ model: name }, found) => tile(found && found.images.pasted, found ? resultAlt(found, title) : '', name, found ? errorOf(found.answer) : '');
    if (results.filter(Boolean).length === 2 && drawn(results[0]) !== drawn(results[1])) { // grids differ: to each its own
      return asked.flatMap((job, i) => [tile(results[i].images.masked, maskedAlt(results[i], title), words('compare.seen_by', { model: job.model })), model(job, results[i])]);
    }
    return [
      tile(first && first.images.masked, first ? maskedAlt(first, title) : '', words('compare.seen')),
      ...asked.map((job, i) => model(job, results[i])),
      tile(first && first.images.original, title, words('explore.right_original')),
    ];
  },
  after() {
    const { models: served } = store.state, alone = served.length < 2;
    $('.um-alone').hidden = !alone; $('.um-row-models .um-two').hidden = $('.um-row-models .um-run-row').hidden = alone;
  },
});
for (const list of [modelA, modelB]) list.addEventListener('change', () => models.draw());

// --- the whole picture ---------------------------------------------------------------------------------------------------
/** Row and column of the largest value of a list by patch of an answer. */
function peak(list, answer) {
  const [, columns] = answer.grid;
  const at = list.reduce((best, value, i) => (value !== null && (best < 0 || value > list[best]) ? i : best), -1);
  return at < 0 ? null : { r: Math.floor(at / columns) + 1, c: (at % columns) + 1, e: ofView(words, percent(list[at]), answer) };
}
const topOf = (scale) => percent(scale.high, 0);
createRow('whole', {
  uses: ['ratio', 'seed', 'view', 'fit', 'crop'],
  jobs() {
    const { ratio, ...rest } = base(); // without a share: each mask hides a quarter, every patch is hidden once
    return [
      { fields: { ...rest, strategy: 'random', cover: 'complete', panels: 'reconstruction,error,original' } },
      { fields: { ...rest, strategy: 'random', ratio, cover: 'ensemble', samples: '8', panels: 'reconstruction,uncertainty' } },
    ];
  },
  paint([complete, several], asked, { picture }) {
    const title = titleOf(picture);
    const most = complete && complete.answer.patches && peak(complete.answer.patches.error_percent, complete.answer);
    const spread = several && several.answer.patches && peak(several.answer.patches.spread_percent, several.answer);
    return [
      tile(complete && complete.images.original, title, words('explore.right_original')),
      tile(complete && complete.images.reconstruction, complete ? resultAlt(complete, title) : '', words('compare.whole_once', { r: complete ? complete.answer.samples : 4 }), complete ? errorOf(complete.answer) : ''),
      tile(complete && complete.images.error, words('alt.error', { title }), words('compare.whole_anomaly'), most ? words('compare.whole_most', { ...most, top: topOf(complete.answer.error_scale) }) : ''),
      tile(several && several.images.reconstruction, several ? resultAlt(several, title) : '', words('compare.whole_mean', { s: several ? several.answer.samples : 8 }), several ? errorOf(several.answer) : ''),
      tile(several && several.images.uncertainty, words('alt.uncertainty', { title }), words('compare.whole_spread', { s: several ? several.answer.samples : 8 }), spread ? words('compare.whole_most', { ...spread, top: topOf(several.answer.uncertainty_scale) }) : ''),
    ];
  },
});
