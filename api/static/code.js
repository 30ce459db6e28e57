// The request that the page made, as code to copy.

const sh = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const json = JSON.stringify; // its strings are Python's and JavaScript's too

// [{name, text}]. `files`: names of pictures; `model`: its name; `first`: whether it is the default one;
// `keyed`: whether a key is asked for.
export function snippets(asked) {
  const { files, words } = asked;
  if (!files.length && !words.length) return [];
  return [
    { name: "curl", text: curl(asked) },
    { name: "Python", text: python(asked) },
    { name: "Python, openai", text: openai(asked) },
    { name: "JavaScript", text: javascript(asked) },
  ];
}

function curl({ url, model, first, files, words, keyed }) {
  const head = keyed ? " -H 'Authorization: Bearer YOUR-KEY'" : "";
  const more = first ? "" : `, "clip_version_id": ${json(model)}`;
  const out = [];
  if (files.length) {
    const images = files.map((file) => `  printf '{"type": "base64", "value": "'; base64 < ${sh(file)} | tr -d '\\n'; printf '"}'`);
    out.push(`{ printf '{"image": ['\n${images.join("; printf ', '\n")}\n  printf %s ${sh(`]${more}}`)}; } |`);
    out.push(`  curl -s ${url}/clip/embed_image${head} -d @-`);
  }
  if (words.length) out.push(`curl -s ${url}/clip/embed_text${head} -d ${sh(`{"text": ${json(words)}${more}}`)}`);
  return out.join("\n");
}

function python({ url, model, first, files, words, keyed }) {
  const options = `${json(url)}${keyed ? ', api_key="YOUR-KEY"' : ""}`;
  const more = first ? "" : `, model=${json(model)}`;
  const line = (name, call, list) => list.length && [
    `    ${name} = clip.${call}(${json(list)}${more}).vectors`,
    `    ${name} /= np.linalg.norm(${name}, axis=1, keepdims=True)`,
  ];
  const both = files.length && words.length;
  return [
    "import numpy as np",
    "from clip_queue import Client",
    "",
    `with Client(${options}) as clip:`,
    line("images", "embed_images", files),
    line("texts", "embed_texts", words),
    both ? "print(images @ texts.T)  # cosines: a row for each picture, a column for each word"
      : `print(${files.length ? "images" : "texts"})`,
  ].filter((each) => each !== 0).flat().join("\n");
}

function openai({ url, model, files, words, keyed }) {
  return [
    "import base64",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${json(`${url}/v1`)}, api_key=${json(keyed ? "YOUR-KEY" : "any")})`,
    `files = ${json(files)}`,
    'inputs = ["data:image/png;base64," + base64.b64encode(open(f, "rb").read()).decode() for f in files]',
    `answer = client.embeddings.create(model=${json(model)}, input=inputs + ${json(words)})`,
    "print([each.embedding for each in answer.data])  # pictures, then words; of length 1: their products are cosines",
  ].join("\n");
}

function javascript({ url, model, first, files, words, keyed }) {
  const more = first ? "" : `, clip_version_id: ${json(model)}`;
  const head = keyed ? '\n    headers: { Authorization: "Bearer YOUR-KEY" },' : "";
  const read = 'files.map((f) => ({ type: "base64", value: readFileSync(f, "base64") }))';
  return [
    'import { readFileSync } from "node:fs"; // Node, Deno or Bun; a module: .mjs',
    "",
    `async function embed(kind, items) {\n  const answer = await fetch(${json(`${url}/clip/embed_`)} + kind, {`,
    `    method: "POST",${head}\n    body: JSON.stringify({ [kind]: items${more} }),\n  });`,
    "  if (!answer.ok) throw new Error(await answer.text());\n  return (await answer.json()).embeddings;\n}",
    files.length && `const files = ${json(files)};\nconsole.log(await embed("image", ${read}));`,
    words.length && `console.log(await embed("text", ${json(words)}));`,
  ].filter((each) => each !== 0).join("\n");
}
