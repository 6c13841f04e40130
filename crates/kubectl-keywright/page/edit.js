// Changes of one property: expiry, addresses or description.

import { dialog, element } from "./dom.js";
import { addresses, expiry, field } from "./fields.js";
import { checkedForm } from "./form.js";
import { pathOf, post } from "./server.js";

/** Opens the dialog for `what` of the row whose details are open. */
export function edit(what, row, details) {
  const box = dialog(`Change ${what} of ${row.display}`, { narrow: true, closed: () => details.focus(`change ${what}`) });
  const [name, target, value] = FIELDS[what](row, () => form.check());
  const form = checkedForm({
    path: `${pathOf(row)}/check`,
    places: { [name]: target },
    gone: () => details.gone(box),
    asked: () => ({ uid: row.uid, generation: row.generation, [name]: value() }),
    told: ({ expires_at: at }) => target.explain?.(at),
    async act(asked) {
      await post(`${pathOf(row)}/edit`, asked);
      box.close();
    },
  });
  box.open(element("form", { novalidate: true, submit: form.send }, target.made, form.end(box, "Change")));
  target.made.querySelector("textarea, input:checked").focus();
  form.look();
}

const FIELDS = {
  expiry(row, check) {
    const target = expiry("", check, ["", "As it is"]);
    return ["expires", target, () => target.value() || undefined];
  },
  addresses(row, check) {
    const target = addresses((row.ips ?? []).join(",\n"), check);
    return ["addresses", target, () => target.control.value];
  },
  description(row, check) {
    const control = element("textarea", { rows: "4", maxlength: "1024", input: check });
    control.value = row.description ?? "";
    return ["description", field("Description", control), () => control.value.trim()];
  },
};
