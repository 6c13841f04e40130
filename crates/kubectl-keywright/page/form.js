// A form whose fields the plugin checks: while somebody types, and before anything is sent.

import { button, element, pause, say, show } from "./dom.js";
import { Gone, post } from "./server.js";

// `asked()` is what is checked at `path`, `told` gets the answer, and `act` sends what was found good. `places` has the target of
// each field that a problem may name; all other problems stand in the last line, `end`.
export function checkedForm({ path, asked, places, told, act, gone }) {
  const rest = element("p", { class: "progress problem", role: "alert" });
  const targets = [...new Set(Object.values(places))];
  let checking;
  let tried = false;
  let sending = false;

  /** What is merely empty is complained about once somebody has tried to send it. */
  function blame(problems) {
    const said = problems.filter(({ missing }) => tried || !missing);
    for (const target of targets) complain(target, said.filter(({ field }) => places[field] === target));
    rest.textContent = said.filter(({ field }) => !(field in places)).map(({ words }) => words).join(" ");
  }

  function complain({ control, problem }, problems) {
    const use = (suggestion, index) => {
      control.value = respell(control.value, index, suggestion);
      control.focus();
      look();
    };
    problem.replaceChildren(...problems.map(({ words, suggestion, index }) =>
      element("span", {}, words, " ", suggestion != null && button(`Use ${suggestion}`, () => use(suggestion, index), { class: "link" }))));
    if (show(problem, problems.length > 0)) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
  }

  async function look() {
    checking?.abort();
    const { signal } = (checking = new AbortController());
    try {
      const answer = await post(path, asked(), signal);
      if (signal.aborted) return null;
      told(answer);
      blame(answer.problems);
      return answer;
    } catch (error) {
      if (error instanceof Gone) gone();
      else if (!signal.aborted) rest.textContent = error.message;
      return null;
    }
  }

  /** What was wrong; nothing, if it was sent, or if nobody is there. */
  async function attempt() {
    const answer = await look();
    if (!answer || answer.problems.length) return answer?.problems;
    try {
      await act({ ...asked(), name: answer.name });
    } catch (error) {
      if (error instanceof Gone) return gone(error);
      const problems = error.fields?.length ? error.fields : [{ words: error.message }];
      blame(problems);
      return problems;
    }
  }

  async function send(event) {
    event.preventDefault();
    if (sending) return;
    sending = tried = true;
    const problems = await attempt();
    sending = false;
    if (!problems) return;
    targets.find((target) => problems.some(({ field }) => places[field] === target))?.control.focus();
    say("Something is missing or wrong.");
  }

  const end = (box, word) =>
    element("div", { class: "end" }, rest, button("Cancel", box.close), element("button", { type: "submit", class: "primary" }, word));
  return { look, check: pause(150, () => sending || look()), send, end };
}

/** The text with another spelling of its entry; without an entry, of all of it. */
function respell(text, index, spelling) {
  let seen = -1;
  return index == null ? spelling : text.replace(/[^\s,]+/g, (entry) => (++seen === index ? spelling : entry));
}
