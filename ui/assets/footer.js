// The lines below every tab: the lesson, what the page builds on, under which terms. Body of a function with `element` and `props`.
const words = wordsOf(props.words);
const $ = (selector) => element.querySelector(selector);

// Steps of docs/lesson.md: title, minutes, links. A link is tab, picture, strategy, ratio and perhaps a part of the tab.
const LESSON = [
  ['lesson.guess', 3, 'explore cat random 0.75'],
  ['lesson.much', 3, 'explore coffee random 0.5', 'explore coffee random 0.75', 'explore coffee random 0.9', 'compare coffee random 0.75'],
  ['lesson.which', 3, 'explore astronaut random 0.5', 'explore astronaut block 0.5', 'explore astronaut random 0.75', 'explore astronaut grid 0.75', 'compare astronaut random 0.75 #um-compare-strategies'],
  ['lesson.main', 3, 'explore rocket random 0.05'],
  ['lesson.inside', 5, 'learn cat random 0.75'],
  ['lesson.learned', 2, 'learn cat random 0.75 #um-learn-training'],
  ['lesson.fails', 1, 'explore galaxies random 0.75', 'explore bricks random 0.75'],
];
function linkOf(text) {
  const [tab, pic, strategy, ratio, part = ''] = text.split(' '), link = make('a', 'um-lesson-link');
  link.href = rootUrl('?' + new URLSearchParams({ tab, pic, strategy, ratio, seed: 7, present: 1, lang: language() }) + part);
  link.textContent = tab === 'explore' ? [words('sample.' + pic), shareText(ratio), words('strategy.' + strategy)].join(' · ') : words('tabs.' + tab);
  return link;
}
function paintLesson() {
  $('.um-lesson ol').replaceChildren(...LESSON.map(([title, minutes, ...links]) => {
    const step = make('li'), head = make('h3', '', words(title) + ' '), row = make('p', 'um-chips');
    head.append(make('span', 'um-hint', words('lesson.minutes', { n: minutes })));
    row.append(...links.map(linkOf));
    step.append(head, row);
    return step;
  }));
}
/** The terms of the weights whose result is shown; only a known licence leads somewhere. */
function paintWeights() {
  const { name, licence } = window.unmask.store.modelShown(), [label, known, other] = $('.um-foot-weights').children;
  $('.um-foot-weights').hidden = !licence;
  label.textContent = words('foot.weights', { model: name });
  known.hidden = licence !== known.textContent;
  other.textContent = known.hidden ? licence : '';
}
function speak() {
  words.fill(element); paintLesson(); paintWeights();
  $('.um-foot-version').textContent = words('head.brand') + ' ' + props.version;
}
$('.um-foot-api').href = rootUrl('docs');
$('.um-lesson-open').addEventListener('click', () => $('.um-lesson').showModal());
$('.um-lesson-close').addEventListener('click', () => $('.um-lesson').close());
document.addEventListener('unmask:language', speak);
speak();
window.unmask.store.watch(paintWeights, element);
