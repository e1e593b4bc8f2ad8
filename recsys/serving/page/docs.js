// Draws /openapi.json: every path with its parameters and its body.

const main = document.getElementById("main");
const schema = await (await fetch("/openapi.json")).json();

function el(tag, text, className) {
  const node = document.createElement(tag);
  node.textContent = text ?? "";
  if (className) node.className = className;
  return node;
}

function resolve(part) {
  return part?.$ref ? schema.components.schemas[part.$ref.split("/").pop()] : part ?? {};
}

function typeOf(part) {
  const found = part?.$ref ? part.$ref.split("/").pop() : part?.type;
  if (part?.anyOf) return part.anyOf.map(typeOf).join(" or ");
  return found === "array" ? `list of ${typeOf(part.items)}` : found ?? "anything";
}

function table(rows) {
  const node = el("ul", "", "plain");
  for (const [name, part, required] of rows) {
    const line = document.createElement("li");
    const { description = "", default: value } = part;
    const least = value === undefined || value === null ? "" : ` Default: ${JSON.stringify(value)}.`;
    line.append(el("code", name), ` ${typeOf(part)}${required ? ", required" : ""}. `, el("span", description + least, "muted"));
    node.append(line);
  }
  return node;
}

for (const [path, methods] of Object.entries(schema.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const card = el("section", "", "card");
    const title = document.createElement("h2");
    title.append(el("code", `${method.toUpperCase()} ${path}`));
    card.append(title, el("p", operation.description ?? operation.summary));
    const parameters = (operation.parameters ?? []).map((each) =>
      [each.name, { ...each.schema, description: each.description ?? each.schema.description }, each.required]);
    const body = resolve(operation.requestBody?.content?.["application/json"]?.schema);
    const fields = Object.entries(body.properties ?? {}).map(([name, part]) => [name, part, body.required?.includes(name)]);
    if (parameters.length) card.append(el("h3", "Query and path"), table(parameters));
    if (fields.length) card.append(el("h3", "Body, JSON"), table(fields));
    main.append(card);
  }
}
document.body.dataset.ready = "true";
