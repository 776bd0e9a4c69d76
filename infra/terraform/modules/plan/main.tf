# What can be known without asking AWS: names, tags, networks, who may deploy. No provider, so that `terraform test` runs
# anywhere: terraform -chdir=infra/terraform/modules/plan test
terraform {
  required_version = ">= 1.11.0"
}

variable "cluster_name" {
  description = "First part of every name."
  type        = string

  validation {
    # Also the first part of a bucket's name, which has no capitals and at most 63 characters, 13 of them the account's.
    condition     = can(regex("^[a-z][a-z0-9-]{1,39}$", var.cluster_name)) && !endswith(var.cluster_name, "-")
    error_message = "cluster_name: expected 2 to 40 of a-z, 0-9 and '-', a letter first, found '${var.cluster_name}'."
  }
}

variable "environment" {
  description = "What the installation is for."
  type        = string
}

variable "vpc_cidr" {
  description = "Addresses of the whole network."
  type        = string

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && contains(["16", "17", "18"], try(split("/", var.vpc_cidr)[1], ""))
    error_message = "vpc_cidr: expected an IPv4 network from /16 to /18, such as 10.40.0.0/16, found '${var.vpc_cidr}'."
  }
}

variable "zones" {
  description = "Availability zones, in order."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 2 && length(var.zones) <= 3
    error_message = "zones: expected 2 or 3 (EKS and RDS need two), found ${length(var.zones)}."
  }
}

variable "nat_per_zone" {
  description = "Whether each zone has a NAT gateway of its own."
  type        = bool
}

variable "github_repository" {
  description = "owner/name, or empty."
  type        = string

  validation {
    condition     = var.github_repository == "" || can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository: expected owner/name, found '${var.github_repository}'."
  }
}

variable "github_environment" {
  description = "The environment that a deployment runs in."
  type        = string
}

locals {
  # A sixteenth of the network for each private subnet, where the pods are; the small rest for the others.
  subnets = {
    for number, zone in var.zones : zone => {
      private  = cidrsubnet(var.vpc_cidr, 4, number)
      public   = cidrsubnet(var.vpc_cidr, 8, 192 + number)
      database = cidrsubnet(var.vpc_cidr, 8, 224 + number)
      # The zone whose NAT gateway its private subnet goes through.
      gateway = var.nat_per_zone ? zone : var.zones[0]
    }
  }
}

output "subnets" {
  description = "By zone: the networks, and the zone of its NAT gateway."
  value       = local.subnets
}

output "gateways" {
  description = "Zones that have a NAT gateway."
  value       = toset([for subnet in local.subnets : subnet.gateway])
}

output "tags" {
  description = "On everything."
  value = {
    project     = "mlops-forge"
    cluster     = var.cluster_name
    environment = var.environment
    managed-by  = "terraform"
  }
}

output "github_subjects" {
  description = "Who GitHub must say that it is: this repository, in this environment; a fork's pull request is neither."
  value = (
    var.github_repository == "" ? [] : ["repo:${var.github_repository}:environment:${var.github_environment}"]
  )
}

output "service_accounts" {
  description = "Service accounts of infra/kubernetes that read and write the bucket."
  value       = toset(["forge-ray-head", "forge-ray-worker", "forge-worker", "forge-mlflow", "forge-api"])
}

output "namespace" {
  description = "Kubernetes namespace of the product."
  value       = "mlops-forge"
}
