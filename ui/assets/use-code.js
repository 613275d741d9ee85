// The request on screen as programs that can be pasted and run.

/** What a program needs to know of the view: fields as the API names them, and where the picture comes from. */
function requestOf({ picture, fields, show }) {
  return { sample: picture ? picture.sample : '', fields, panels: ['masked', show.paste ? 'pasted' : 'reconstruction', 'original'], server: rootUrl('') };
}
/** A field as JSON has it: numbers and lists are what they are. */
function plain(name, value) {
  if (name === 'indices') return `[${JSON.parse(value).join(', ')}]`;
  return /^\d+(\.\d+)?$/.test(value) ? value : JSON.stringify(value);
}

/** A word for the shell. */
const quoted = (text) => (/^[\w.,:/=@+-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`);

const PROGRAMS = {
  curl({ sample, fields, panels, server }) {
    const file = sample ? `${sample}.jpg` : 'photo.jpg';
    const options = Object.entries({ ...fields, panels: panels.join(',') }).map(([name, value]) => {
      const field = quoted(`${name}=${value}`);
      return (field.startsWith("'") ? '--form-string ' : '-F ') + field; // -F would read @, < and ; in a value
    });
    const lines = [`curl -fsS -F image=@${quoted(file)}`, ...options.map((option) => '  ' + option), "  -H 'Accept: image/png' -o result.png", '  ' + quoted(server + 'v1/reconstruct')];
    return (sample ? `curl -fsS -o ${quoted(file)} ${quoted(server + 'v1/samples/' + encodeURIComponent(sample))}\n` : '') + lines.join(' \\\n');
  },
  python({ sample, fields, panels, server }) {
    const photo = sample ? `urlopen(SERVER + ${JSON.stringify('v1/samples/' + encodeURIComponent(sample))}).read()` : 'Path("photo.jpg").read_bytes()';
    return [
      'import base64', 'import json', 'from pathlib import Path', 'from urllib.request import Request, urlopen', '',
      `SERVER = ${JSON.stringify(server)}`, `photo = ${photo}`,
      'asked = {', '    "image": base64.b64encode(photo).decode(),',
      ...Object.entries(fields).map(([name, value]) => `    ${JSON.stringify(name)}: ${plain(name, value)},`),
      `    "panels": [${panels.map((panel) => JSON.stringify(panel)).join(', ')}],`, '}',
      'request = Request(SERVER + "v1/reconstruct", json.dumps(asked).encode(), {"Content-Type": "application/json"})',
      'answer = json.load(urlopen(request))', '',
      'print(answer["metrics"]["colour_error_percent"], "plain fill:", answer["metrics"]["plain_fill"]["colour_error_percent"])',
      'for name, address in answer["images"].items():', '    Path(name + ".png").write_bytes(base64.b64decode(address.split(",")[1]))',
    ].join('\n');
  },
  javascript({ sample, fields, panels, server }) {
    const photo = sample ? `await (await fetch(server + ${JSON.stringify('v1/samples/' + encodeURIComponent(sample))})).blob()` : "document.querySelector('input[type=file]').files[0]";
    return [
      `const server = ${JSON.stringify(server)};`, `const photo = ${photo};`,
      'const asked = {', ...Object.entries({ ...fields, panels: panels.join(',') }).map(([name, value]) => `  ${name}: ${JSON.stringify(value)},`), '};', '',
      'const form = new FormData();', "form.append('image', photo, 'photo.jpg');", 'for (const [name, value] of Object.entries(asked)) form.append(name, value);',
      "const response = await fetch(server + 'v1/reconstruct', { method: 'POST', body: form });", 'const answer = await response.json();',
      'console.log(answer.metrics.colour_error_percent, Object.keys(answer.images));',
    ].join('\n');
  },
};
