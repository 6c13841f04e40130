// The dialog that creates a key: what it is to be, its manifest beside it, then the key or where it is.

import { button, by, copyable, dialog, element, show } from "./dom.js";
import { addresses, choice, expiry, field } from "./fields.js";
import { checkedForm } from "./form.js";
import { post } from "./server.js";
import { take } from "./take.js";

/** `session` knows the user, `view` the namespace; `list` shows the new row; `wait` tells what becomes of it. */
export function create({ session, view, list, wait, gone }) {
  const box = dialog("Create API key", { closed: () => (made ? list.focus(made.uid) : by("create").focus()) });
  const namespace = view.namespace || session.namespace;
  let made = null;
  let isNamed = false;
  const check = () => form.check();
  // The answer may hold a key.
  const stay = (event) => event.preventDefault();
  const text = (attributes) => element("input", { autocomplete: "off", input: check, ...attributes });

  const display = field("Name", text({ maxlength: "128" }), { required: true });
  const name = text({ "aria-label": "Object name", spellcheck: "false", class: "mono", hidden: true });
  const derived = element("code", {});
  display.helping.replaceChildren("Object name: ", derived, " ", button("Edit", () => {
    isNamed = show(name, true);
    show(display.helping, false);
    name.focus();
  }, { class: "link", "aria-label": "Edit the object name" }));
  display.made.insertBefore(name, display.problem);
  const offered = view.namespace ? [namespace] : session.namespaces ?? [namespace];
  const place = field("Namespace", element("select", { change: check }, offered.map((value) => element("option", { value, selected: value === namespace }, value))));
  const description = field("Description", element("textarea", { rows: "2", maxlength: "1024", input: check }));
  const owner = field("Owner", text({ spellcheck: "false", value: session.owner }), { help: session.owner ? "" : "Who answers for it. Left empty: you." });
  const ends = expiry("90d", check);
  const from = addresses("", check);
  const deliver = choice("Deliver", [["secret", "Into a Secret"], ["once", "Show me once, keep a digest"]], "secret", check);

  const manifest = copyable("Manifest", element("h3", {}, "The same, for Git"));

  const form = checkedForm({
    path: "/api/check",
    places: { display_name: display, name: display, description, owner, expires: ends, addresses: from },
    gone: (error) => gone(box, error),
    asked: () => ({
      namespace: place.control.value,
      name: isNamed ? name.value.trim() : null,
      display_name: display.control.value.trim(),
      description: description.control.value.trim(),
      owner: owner.control.value.trim(),
      expires: ends.value(),
      addresses: from.control.value,
      deliver: deliver.value(),
    }),
    told(answer) {
      derived.textContent = answer.name ?? "...";
      if (!isNamed) name.value = answer.name ?? "";
      manifest.text.textContent = answer.manifest;
      ends.explain(answer.expires_at);
    },
    async act(asked) {
      list.own.add(`${asked.namespace}/${asked.name}`);
      const started = performance.now();
      addEventListener("beforeunload", stay);
      try {
        made = await post("/api/keys", asked);
      } finally {
        removeEventListener("beforeunload", stay);
      }
      take(box, made, started, wait);
    },
  });

  box.open(element("form", { novalidate: true, submit: form.send },
    element("div", { class: "columns" },
      element("div", { class: "fields" }, display.made, offered.length > 1 && place.made, description.made, owner.made, ends.made, from.made, deliver.made),
      manifest.made),
    form.end(box, "Create key")));
  display.control.focus();
  form.look();
}
