// Shows the OpenAPI document of this service in Swagger UI, with the API key of this tab.
import { fetchJson, getApiKey, serviceUrl, setApiKey } from "../page/api.js";

const message = document.getElementById("message");
const keyPanel = document.getElementById("key-panel");

/** Loads the document and shows it; asks for a key if the service requires one. */
async function showDocument() {
  let specification;
  try {
    ({ content: specification } = await fetchJson("/docs.json"));
  } catch (error) {
    message.textContent = error.status === 401 && getApiKey() === "" ? "" : error.message;
    message.hidden = message.textContent === "";
    keyPanel.hidden = error.status !== 401 && error.status !== 403;
    return;
  }
  message.hidden = keyPanel.hidden = true;
  if (typeof SwaggerUIBundle === "undefined") {
    message.textContent = "The files of Swagger UI could not be loaded. The link below leads to the same description as JSON.";
    message.hidden = false;
    return;
  }
  specification.servers = [{ url: serviceUrl() }]; // also below a path of a proxy that the service does not know
  const ui = SwaggerUIBundle({
    spec: specification,
    dom_id: "#swagger-ui",
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    deepLinking: true,
    validatorUrl: null, // would send the address of this service to another server
    queryConfigEnabled: false,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: 0,
    onComplete: () => {
      if (getApiKey() !== "") ui.preauthorizeApiKey("header", getApiKey());
    },
  });
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(document.getElementById("key").value.trim());
  showDocument();
});
showDocument();
