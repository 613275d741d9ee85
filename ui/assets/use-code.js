// The request on screen as programs that can be pasted and run.

/** What a program needs to know of the view: fields and panels as the API names them, where the picture comes from, whether a key is asked for. */
function neededFor({ picture }, keyed) { return { sample: picture ? picture.sample : '', ...store.request(), server: rootUrl(''), keyed }; }
/** A field as JSON has it: numbers and lists are what they are. */
function plain(name, value) {
  if (name === 'indices') return `[${JSON.parse(value).join(', ')}]`;
  return /^\d+(\.\d+)?$/.test(value) ? value : JSON.stringify(value);
}

/** A word for the shell. */
const quoted = (text) => (/^[\w.,:/=@+-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`);

const PROGRAMS = {
  curl({ sample, fields, panels, server, keyed }) {
    const file = sample ? `${sample}.jpg` : 'photo.jpg', key = keyed ? '-H "X-API-Key: $UNMASK_API_KEY" ' : '';
    const options = Object.entries({ ...fields, panels: panels.join(',') }).map(([name, value]) => {
      const field = quoted(`${name}=${value}`);
      return (field.startsWith("'") ? '--form-string ' : '-F ') + field; // -F would read @, < and ; in a value
    });
    const lines = [`curl -fsS ${key}-F image=@${quoted(file)}`, ...options.map((option) => '  ' + option), "  -H 'Accept: image/png' -o result.png", '  ' + quoted(server + 'v1/reconstruct')];
    return (sample ? `curl -fsS ${key}-o ${quoted(file)} ${quoted(server + 'v1/samples/' + encodeURIComponent(sample))}\n` : '') + lines.join(' \\\n');
  },
  python({ sample, fields, panels, server, keyed }) {
    const at = `SERVER + ${JSON.stringify('v1/samples/' + encodeURIComponent(sample))}`;
    const photo = sample ? `urlopen(${keyed ? `Request(${at}, headers=KEY)` : at}).read()` : 'Path("photo.jpg").read_bytes()';
    return [
      'import base64', 'import json', ...(keyed ? ['import os'] : []), 'from pathlib import Path', 'from urllib.request import Request, urlopen', '',
      `SERVER = ${JSON.stringify(server)}`, ...(keyed ? ['KEY = {"X-API-Key": os.environ["UNMASK_API_KEY"]}'] : []), `photo = ${photo}`,
      'asked = {', '    "image": base64.b64encode(photo).decode(),',
      ...Object.entries(fields).map(([name, value]) => `    ${JSON.stringify(name)}: ${plain(name, value)},`),
      `    "panels": [${panels.map((panel) => JSON.stringify(panel)).join(', ')}],`, '}',
      `request = Request(SERVER + "v1/reconstruct", json.dumps(asked).encode(), {"Content-Type": "application/json"${keyed ? ', **KEY' : ''}})`,
      'answer = json.load(urlopen(request))', '',
      'print(answer["metrics"]["colour_error_percent"], "plain fill:", answer["metrics"]["plain_fill"]["colour_error_percent"])',
      'for name, address in answer["images"].items():', '    Path(name + ".png").write_bytes(base64.b64decode(address.split(",")[1]))',
    ].join('\n');
  },
  javascript({ sample, fields, panels, server, keyed }) {
    const key = keyed ? ', { headers: key }' : '';
    const photo = sample ? `await (await fetch(server + ${JSON.stringify('v1/samples/' + encodeURIComponent(sample))}${key})).blob()` : "new Blob([await readFile('photo.jpg')])";
    return [
      ...(sample ? [] : ["import { readFile } from 'node:fs/promises';", '']),
      `const server = ${JSON.stringify(server)};`, ...(keyed ? ["const key = { 'X-API-Key': process.env.UNMASK_API_KEY };"] : []), `const photo = ${photo};`,
      'const asked = {', ...Object.entries({ ...fields, panels: panels.join(',') }).map(([name, value]) => `  ${name}: ${JSON.stringify(value)},`), '};', '',
      'const form = new FormData();', "form.append('image', photo, 'photo.jpg');", 'for (const [name, value] of Object.entries(asked)) form.append(name, value);',
      `const response = await fetch(server + 'v1/reconstruct', { method: 'POST', body: form${keyed ? ', headers: key' : ''} });`,
      'if (!response.ok) throw new Error(await response.text());', 'const answer = await response.json();',
      'console.log(answer.metrics.colour_error_percent, Object.keys(answer.images));',
    ].join('\n');
  },
};
