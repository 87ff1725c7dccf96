// Filters and orders the list of all held-out answers; without it the list is whole, in the order of the held-out split.
for (const part of document.querySelectorAll(".all")) {
  const form = part.querySelector("form"), list = part.querySelector(".cases"), count = part.querySelector("output");
  const cases = [...list.children].map((node, place) => ({ node, place, gain: Number(node.dataset.gain), given: [...node.querySelectorAll("[data-policy]")] }));
  const shows = { all: () => true, higher: (gain) => gain > 0, same: (gain) => gain === 0, lower: (gain) => gain < 0 };
  const asked = new Map(cases.map(({ node }) => [node, node.querySelector(".asked").textContent.toLowerCase()]));

  const shown = ({ node, given, gain }, { text, outcome, policy }) => {
    const seen = given.filter((answer) => !policy || answer.dataset.policy === policy);
    for (const answer of given) answer.hidden = !seen.includes(answer);
    const found = (words) => words.includes(text.trim().toLowerCase());
    return shows[outcome](gain) && (found(asked.get(node)) || seen.some((answer) => found(answer.lastElementChild.textContent.toLowerCase())));
  };
  const key = ({ given, gain, place }, { order, policy }) => {
    if (order === "gain" || order === "place") return order === "gain" ? gain : place;
    return Number(given.find((answer) => answer.dataset.policy === (policy || list.dataset.policy))?.dataset[order]);
  };
  const arrange = () => {
    const wanted = Object.fromEntries(new FormData(form)), sign = wanted.direction === "up" ? 1 : -1;
    const ordered = [...cases].sort((a, b) => sign * (key(a, wanted) - key(b, wanted)) || a.place - b.place);
    let number = 0;
    for (const each of ordered) number += !(each.node.hidden = !shown(each, wanted));
    list.append(...ordered.map(({ node }) => node));
    count.textContent = `${number} of ${cases.length} prompts`;
  };
  form.addEventListener("input", arrange);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  arrange();
}
