import { Empty } from "./Empty";

/** Shown where the server does not know who asks. */
export function Locked() {
  return (
    <Empty title="The token is missing or no longer valid">
      <p>
        Open the link that <code>rapidfireai start</code> printed; <code>rapidfireai status</code> prints it again.
      </p>
    </Empty>
  );
}
