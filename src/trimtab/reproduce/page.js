// Without this script the page follows the system's theme; with it the reader may switch.
const button = document.getElementById("theme");
const dark = () =>
  (document.documentElement.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const label = () => (button.textContent = dark() ? "Light theme" : "Dark theme");
button.hidden = false;
button.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  label();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();
