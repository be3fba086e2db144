CREATE TABLE `admin_keys` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`hash` text NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL,
	`last_used_at` integer,
	`revoked_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `admin_keys_by_hash` ON `admin_keys` (`hash`);--> statement-breakpoint
CREATE TABLE `bans` (
	`client` text PRIMARY KEY NOT NULL,
	`until` integer NOT NULL,
	`since` integer NOT NULL,
	`reason` text NOT NULL,
	`by` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `bans_by_end` ON `bans` (`until`);--> statement-breakpoint
CREATE TABLE `data_keys` (
	`id` text PRIMARY KEY NOT NULL,
	`current` integer NOT NULL,
	`published_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `pauses` (
	`what` text PRIMARY KEY NOT NULL,
	`since` integer NOT NULL,
	`reason` text NOT NULL,
	`by` text NOT NULL
);
--> statement-breakpoint
ALTER TABLE `agent_wallets` ADD `sealed_private_key` text;--> statement-breakpoint
CREATE INDEX `agent_wallets_by_key` ON `agent_wallets` (`key_id`);--> statement-breakpoint
CREATE INDEX `attempts_by_key` ON `attempts` (`key_id`) WHERE private_key IS NOT NULL;--> statement-breakpoint
CREATE INDEX `vms_by_status` ON `vms` (`status`,`token_id`) WHERE current = 1 AND status <> 'provisioning';--> statement-breakpoint
CREATE INDEX `vms_by_key` ON `vms` (`key_id`) WHERE ssh_private_key IS NOT NULL;