-- What an order over x402 asks of its machine, as JSON.
ALTER TABLE `vms` ADD `terms` text;
