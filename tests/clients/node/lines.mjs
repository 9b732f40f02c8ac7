// The loop of a client program on Node: an operation a line in, what came of it a line out.

import { createInterface } from "node:readline";

// Answers until the tests close our input. What an operation throws is its answer, too.
export async function serve(operations) {
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    let answer;
    try {
      answer = await operations[asked.do](asked);
    } catch (error) {
      answer = {
        error: [error.constructor.name],
        status: error.status ?? error.statusCode,
        message: error.message,
      };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
}
