// The request that the page made, as code to copy.

const sh = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const json = JSON.stringify; // its strings are Python's and JavaScript's too

// [{name, text}]. `files`: names of pictures; `model`: null for the default one; `keyed`: whether a key is asked for.
export function snippets({ url, model, files, words, keyed }) {
  return [
    { name: "curl", text: curl(url, model, files, words, keyed) },
    { name: "Python", text: python(url, model, files, words, keyed) },
    { name: "Python, openai", text: openai(url, model, files, words, keyed) },
    { name: "JavaScript", text: javascript(url, model, words, keyed) },
  ];
}

function curl(url, model, files, words, keyed) {
  const head = keyed ? " -H 'Authorization: Bearer YOUR-KEY'" : "";
  const more = model ? `, "clip_version_id": ${json(model)}` : "";
  const out = [];
  if (files.length) {
    const images = files.map((file) => `  printf '{"type": "base64", "value": "'; base64 < ${sh(file)} | tr -d '\\n'; printf '"}'`);
    out.push(`{ printf '{"image": ['\n${images.join("; printf ', '\n")}\n  printf %s ${sh(`]${more}}`)}; } |`);
    out.push(`  curl -s ${url}/clip/embed_image${head} -d @-`);
  }
  if (words.length) out.push(`curl -s ${url}/clip/embed_text${head} -d ${sh(`{"text": ${json(words)}${more}}`)}`);
  return out.join("\n");
}

function python(url, model, files, words, keyed) {
  const options = `${json(url)}${keyed ? ', api_key="YOUR-KEY"' : ""}`;
  const more = model ? `, model=${json(model)}` : "";
  return [
    "import numpy as np",
    "from clip_queue import Client",
    "",
    `with Client(${options}) as clip:`,
    `    images = clip.embed_images(${json(files)}${more}).vectors`,
    `    texts = clip.embed_texts(${json(words)}${more}).vectors`,
    "images /= np.linalg.norm(images, axis=1, keepdims=True)",
    "texts /= np.linalg.norm(texts, axis=1, keepdims=True)",
    "print(images @ texts.T)  # a row for each picture, a column for each word",
  ].join("\n");
}

function openai(url, model, files, words, keyed) {
  return [
    "import base64",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${json(`${url}/v1`)}, api_key=${json(keyed ? "YOUR-KEY" : "any")})`,
    `files = ${json(files)}`,
    'images = ["data:image/png;base64," + base64.b64encode(open(f, "rb").read()).decode() for f in files]',
    `answer = client.embeddings.create(model=${json(model || "")}, input=images + ${json(words)})`,
    "print([each.embedding[:3] for each in answer.data])  # of length 1: their products are cosines",
  ].join("\n");
}

function javascript(url, model, words, keyed) {
  const head = keyed ? '\n  headers: { Authorization: "Bearer YOUR-KEY" },' : "";
  const more = model ? `, clip_version_id: ${json(model)}` : "";
  return [
    `const answer = await fetch(${json(`${url}/clip/embed_text`)}, {`,
    `  method: "POST",${head}`,
    `  body: JSON.stringify({ text: ${json(words)}${more} }),`,
    "});",
    "const { embeddings } = await answer.json();",
    "console.log(embeddings.length, embeddings[0].length);",
  ].join("\n");
}
